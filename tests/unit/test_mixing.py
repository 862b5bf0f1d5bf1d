"""How often an epoch shows each source and text, and what was seen of each."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_kit import write_pictures

from striate.config import parse_config
from striate.data.held_out import TrainingData, training_data
from striate.data.mixing import SampleSources
from striate.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sources: 20 samples with pictures, 8 with and without in turn, and 10 without."""
    root = tmp_path_factory.mktemp("mixing")
    write_pictures(root / "images")
    for name, count, pictured in (("a", 20, (1, 1)), ("b", 8, (1, 0)), ("c", 10, (0, 0))):
        rows = [
            {
                "id": f"{name}{n}",
                "question": f"Q{name}{n}",
                "answer": "A",
                **({"image": "0.png"} if pictured[n % 2] else {}),
            }
            for n in range(count)
        ]
        (root / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return root


def data_of(root: Path, *overrides: str, seed: int = 0) -> TrainingData:
    raw = {"model": {"path": "owner/m"}, "data": {"train": [str(root / f"{name}.jsonl") for name in "abc"]}}
    section = parse_config(raw, [text.replace("ROOT", str(root)) for text in overrides]).data
    return training_data(section, [Path(place) for place in section.train], None, seed)


def counts(data: TrainingData) -> dict[str, int]:
    return dict(Counter(sample.id[0] for sample in data.samples))


def test_without_a_mix_every_sample_is_shown_once(root: Path) -> None:
    data = data_of(root)
    assert [sample.id for sample in data.samples] == [
        f"{n}{i}" for n, c in (("a", 20), ("b", 8), ("c", 10)) for i in range(c)
    ]
    assert data.sources is not None
    assert (data.sources.sizes, data.sources.available) == ((20, 8, 10), (20, 8, 10))


def test_times_and_shares(root: Path) -> None:
    data = data_of(root, "data.mix={ROOT/a.jsonl: 0.25, ROOT/b.jsonl: 2.5}")
    assert counts(data) == {"a": 5, "b": 20, "c": 10}
    times = Counter(sample.id for sample in data.samples if sample.id[0] == "b")
    assert sorted(times.values()) == [2, 2, 2, 2, 3, 3, 3, 3]
    assert counts(data_of(root, "data.mix={ROOT/c.jsonl: 30%}")) == {"a": 20, "b": 8, "c": 12}
    assert counts(data_of(root, "data.mix={ROOT/c.jsonl: 30%, ROOT/a.jsonl: 50%}")) == {"a": 20, "b": 8, "c": 12}
    every = "data.mix={ROOT/a.jsonl: 10%, ROOT/b.jsonl: 40%, ROOT/c.jsonl: 50%}"
    assert counts(data_of(root, every)) == {"a": 4, "b": 15, "c": 19}


def test_the_same_seed_gives_the_same_mix(root: Path) -> None:
    setting = "data.mix={ROOT/a.jsonl: 0.25}"
    first, again, other = (data_of(root, setting, seed=seed).samples for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("share", [5, 20, 50, 80])
def test_a_share_of_text(share: int, root: Path) -> None:
    samples = data_of(root, f"data.text={share}%").samples
    text = sum(not sample.images for sample in samples)
    # All that have pictures stay, each once.
    assert len(samples) - text == 24
    assert abs(text / len(samples) - share / 100) < 1 / 24


def test_what_is_held_out_is_in_no_mix(root: Path) -> None:
    data = data_of(root, "data.mix={ROOT/c.jsonl: 4, ROOT/b.jsonl: 3}", "data.text=60%", "data.validate=20%")
    held = {sample.id for sample in data.held_out}
    assert held
    assert held.isdisjoint(sample.id for sample in data.samples)
    assert data.sources is not None
    assert sum(data.sources.available) == 38 - len(held)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.data())
def test_what_was_seen_adds_up(sizes: list[int], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, sum(sizes) - 1), max_size=20))
    times = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
    seen = SampleSources(tuple(map(str, sizes)), tuple(sizes), tuple(sizes), rows).seen(times)
    assert sum(one.seen for one in seen) == len({row for row, count in zip(rows, times, strict=True) if count})
    assert sum(one.epochs * one.samples for one in seen) == pytest.approx(sum(times))
    assert all(one.seen <= one.samples for one in seen)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("data.mix={x.jsonl: 2}", "'x.jsonl' is none of train"),
        ("data.mix={a.jsonl: 0}", "a number of times, over 0 and at most 1000, or a share"),
        ("data.mix={a.jsonl: 0%}", "a number of times, over 0"),
        ("data.mix={a.jsonl: much}", "'a.jsonl' is 'much'"),
        (
            "data.mix={a.jsonl: 60%, b.jsonl: 40%}",
            "its shares are 100% together: below 100%, as other places have no share",
        ),
        ("data.mix={a.jsonl: 30%, b.jsonl: 30%, c.jsonl: 30%}", "90% together: 100%, as every place has one"),
        ("data.text=0%", "over 0% and below 100%, such as 10%"),
    ],
)
def test_mixes_that_mean_nothing(override: str, text: str) -> None:
    raw: dict[str, Any] = {"model": {"path": "owner/m"}, "data": {"train": ["a.jsonl", "b.jsonl", "c.jsonl"]}}
    with pytest.raises(ConfigError) as caught:
        parse_config(raw, [override])
    assert text in str(caught.value)


def test_text_that_is_not_there(root: Path) -> None:
    with pytest.raises(DataError, match=r"of 20 samples 0 have none"):
        data_of(root, "data.train=[ROOT/a.jsonl]", "data.text=10%")
    with pytest.raises(DataError, match=r"of 10 samples 10 have none"):
        data_of(root, "data.train=[ROOT/c.jsonl]", "data.text=10%")
