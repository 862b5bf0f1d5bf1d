"""Samples held out of training: how many, by seed, never among those that train; refusals as text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from striate.config import parse_config
from striate.data.held_out import shows_trained, split, training_data
from striate.data.reading import read_samples
from striate.data.samples import Message, Sample
from striate.errors import ConfigError, DataError

RAW: dict[str, Any] = {"model": {"path": "owner/m"}, "data": {"train": ["d"]}}


def sample(name: str, *pictures: str) -> Sample:
    text = "<image>" * len(pictures) + name
    return Sample(name, (Message("user", text), Message("assistant", "yes")), tuple(Path(one) for one in pictures))


PICTURED = [sample(f"p{index}", f"{index // 2}.png") for index in range(100)]
MIXED = [*PICTURED, *(sample(f"t{index}") for index in range(50))]


def test_a_share_of_each_kind_is_held_out_and_pictures_stay_on_one_side() -> None:
    data = split(MIXED, 0.1, seed=0)
    assert [len(one.images) for one in data.held_out] == [1] * 10 + [0] * 5
    assert {one.id for one in data.samples}.isdisjoint(one.id for one in data.held_out)
    assert sorted(data.samples + data.held_out, key=MIXED.index) == MIXED
    shown = [{image for one in side for image in one.images} for side in (data.samples, data.held_out)]
    assert shown[0].isdisjoint(shown[1])
    assert [one for one in MIXED if one in data.samples] == data.samples


def test_the_seed_alone_says_which() -> None:
    assert split(MIXED, 0.1, 3) == split(list(MIXED), 0.1, 3)
    assert split(MIXED, 0.1, 3) != split(MIXED, 0.1, 4)


def test_pictures_that_are_shared_by_some_of_a_sample_s_keep_them_together() -> None:
    chain = [sample("a", "1", "2"), sample("b", "2", "3"), sample("c", "3"), sample("d", "4"), sample("e", "5")]
    held_out = [{one.id for one in split(chain, 0.4, seed).held_out} for seed in range(20)]
    assert {"d", "e"} in held_out
    assert all(ids == {"d", "e"} for ids in held_out)


def test_copies_of_a_picture_and_texts_that_repeat_stay_on_one_side(tmp_path: Path) -> None:
    for index in range(20):
        (tmp_path / f"{index}.png").write_bytes(b"%02d" % (index // 2))
    pictured = [sample(f"p{index}", str(tmp_path / f"{index}.png")) for index in range(20)]
    said = [replace(sample(f"say {index // 2}"), id=str(index)) for index in range(20)]
    for seed in range(40):
        data = split([*pictured, *said], 0.2, seed)
        assert len(data.held_out) == 8
        sides = [
            {one.images[0].read_bytes() if one.images else one.messages for one in side}
            for side in (data.samples, data.held_out)
        ]
        assert sides[0].isdisjoint(sides[1])


def test_at_least_one_is_held_out_and_one_is_left() -> None:
    assert len(split(MIXED[:20], 0.001, 0).held_out) == 2
    assert len(split(MIXED[100:110], 0.001, 0).held_out) == 1
    with pytest.raises(DataError, match=r"data\.validate would hold out all of 2 samples, as those that share"):
        split(MIXED[:2], 0.5, 0)


@pytest.mark.parametrize("given", ["0%", "100%", "two%", "-1%", "%", " "])
def test_a_bad_share_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="is no share of the training data: over 0% and below 100%, such as 2%"):
        parse_config(RAW, [f"data.validate={json.dumps(given)}"])


@pytest.mark.parametrize("given", ["2", "0.02"])
def test_a_number_is_no_share_and_what_is_one_is_said(given: str) -> None:
    with pytest.raises(ConfigError, match="is neither a share of the training data, such as 2%, nor a file or folder"):
        parse_config(RAW, [f"data.validate={given}"])


def test_shares_and_places_are_told_apart() -> None:
    section = parse_config(RAW, ["data.validate=2.5%"]).data
    assert (section.validate, section.validation_share) == ("2.5%", 0.025)
    section = parse_config(RAW, ["data.validate=held_out.json"]).data
    assert (section.validate, section.validation_share) == ("held_out.json", None)


@pytest.mark.parametrize("setting", ["train.keep=best", "train.early_stopping_patience=3"])
def test_what_follows_from_validation_needs_it(setting: str) -> None:
    name = setting.partition("=")[0]
    with pytest.raises(ConfigError, match=f"{name} follows from held-out samples, and data.validate is not set"):
        parse_config(RAW, [setting])
    parse_config(RAW, [setting, "data.validate=2%"])


def test_a_file_of_held_out_samples(pack_dir: Path, tmp_path: Path) -> None:
    rows = json.loads((pack_dir / "train.json").read_text())
    # Pictures of the pack repeat: what is asked tells the samples apart.
    for number, row in enumerate(rows):
        row["conversations"][0]["value"] += f" ({number})"
    kept, apart = pack_dir / "kept.json", pack_dir / "apart.json"
    kept.write_text(json.dumps(rows[:8]))
    apart.write_text(json.dumps(rows[8:]))
    section = parse_config(RAW, [f"data.validate={apart}"]).data
    data = training_data(section, [kept], apart, seed=0)
    assert [one.id for one in data.samples] == [row["id"] for row in rows[:8]]
    assert [one.id for one in data.held_out] == [row["id"] for row in rows[8:]]
    assert shows_trained(data) == 4
    assert shows_trained(replace(data, samples=data.samples[4:])) == 4
    assert shows_trained(replace(data, samples=data.samples[:1])) == 1
    # The same sample under another name is the same sample.
    renamed = [{**row, "id": f"other-{index}"} for index, row in enumerate(rows[6:])]
    apart.write_text(json.dumps(renamed))
    image = pack_dir / "images" / "copied.png"
    image.write_bytes((pack_dir / renamed[0]["image"]).read_bytes())
    renamed[0]["image"] = "images/copied.png"
    apart.write_text(json.dumps(renamed))
    message = f"2 of {len(renamed)} samples of data.validate are trained on, such as 'other-0'"
    with pytest.raises(DataError, match=message):
        training_data(section, [kept], apart, seed=0)
    assert training_data(parse_config(RAW).data, [kept]).held_out == []
    assert training_data(parse_config(RAW).data, [kept]).samples == read_samples(kept)
