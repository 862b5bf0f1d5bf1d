"""Samples of a large source come from the disk: the same ones, checked once, and again after any change."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from striate.config import parse_config
from striate.data import parsing, reading
from striate.data.held_out import training_data
from striate.data.named_pictures import named_pictures
from striate.data.parsing import parse_sample
from striate.data.reading import iter_samples, joined, read_many, read_samples
from striate.data.samples import Sample
from striate.data.sources.image_folder import ImageFolder
from striate.data.sources.source_options import SourceOptions
from striate.data.store import store_once
from striate.data.store.sample_columns import SampleColumns, pictures_shown
from striate.data.store.sample_rows import SampleRows
from striate.data.store.stored_samples import TEXTS, StoredSamples
from striate.errors import DataError, StriateError
from striate.storage import file_digests


@pytest.fixture
def large(pack_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pack that counts as large, and an empty cache."""
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store_once, "WORTH_BYTES", 0)
    monkeypatch.setattr(file_digests, "_known", {})
    return pack_dir


def stores(large: Path) -> list[Path]:
    folder = large.parent / "cache" / store_once.KIND
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []


def parsed_never(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> None:
        raise AssertionError("parsed again")

    monkeypatch.setattr(reading, "parse_sample", refuse)


def test_the_same_samples_come_from_the_disk(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = list(iter_samples(large))
    stored = read_samples(large)
    assert isinstance(stored, StoredSamples)
    assert list(stored) == plain == stored[:] == [stored[index] for index in range(len(stored))]
    assert (stored[-1], stored[2:9:3]) == (plain[-1], plain[2:9:3])
    with pytest.raises(IndexError):
        stored[len(plain)]
    assert list(pickle.loads(pickle.dumps(stored))) == plain
    assert list(pictures_shown(stored)) == [sample.images for sample in plain]
    ours, theirs = SampleColumns.of(stored), SampleColumns.of(plain)
    assert ours.lengths.tolist() == theirs.lengths.tolist()
    assert ours.pictures.tolist() == theirs.pictures.tolist()
    parsed_never(monkeypatch)
    assert list(read_samples(large)) == plain
    assert named_pictures(large) == sorted({image for sample in plain for image in sample.images})


def test_rows_of_several_sources_are_those_of_lists(large: Path) -> None:
    stored, plain = read_samples(large), list(iter_samples(large))
    rows = [20, 3, 3, 12, 0]
    chosen, expected = joined([stored, plain], rows), [[*plain, *plain][row] for row in rows]
    assert isinstance(chosen, SampleRows)
    assert list(chosen) == expected == chosen[:]
    assert (chosen[1], chosen[-1]) == (expected[1], expected[-1])
    assert chosen.columns.lengths.tolist() == SampleColumns.of(expected).lengths.tolist()
    assert [chosen.shown(index) for index in range(5)] == [sample.images for sample in expected]
    same = SampleRows([plain, plain], rows)
    assert [chosen.digest(index) for index in range(5)] == [same.digest(index) for index in range(5)]
    assert list(read_many([large, large], 9, 3)) == list(read_many_of_lists([plain, plain], 9, 3))


def read_many_of_lists(parts: list[list[Sample]], limit: int, seed: int) -> list[Sample]:
    return list(reading.drawn([sample for part in parts for sample in part], limit, seed))


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["data.validate=30%"],
        ["data.max_train_samples=7"],
        ["data.text=40%"],
        ["data.text=40%", "data.validate=20%"],
    ],
    ids=" ".join,
)
def test_training_reads_the_same_from_the_disk(
    large: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    section = parse_config({"model": {"path": "owner/m"}, "data": {"train": [str(large)]}}, settings).data
    stored = training_data(section, [large], seed=4)
    monkeypatch.setattr(store_once, "WORTH_BYTES", 2**40)
    listed = training_data(section, [large], seed=4)
    assert isinstance(stored.samples, SampleRows)
    assert isinstance(listed.samples, list)
    assert list(stored.samples) == listed.samples
    assert list(stored.held_out) == listed.held_out
    assert stored.sources is not None
    assert listed.sources is not None
    assert list(stored.sources.rows) == list(listed.sources.rows)


def test_small_sources_are_not_stored(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_once, "WORTH_BYTES", 2**20)
    assert isinstance(read_samples(large), list)
    assert read_samples(large, 3) == list(iter_samples(large))[:3]
    assert not stores(large)


def test_a_change_of_the_file_is_read(large: Path) -> None:
    read_samples(large)
    rows = json.loads((large / "train.json").read_text())
    rows[0]["conversations"][1]["value"] = "purple"
    (large / "train.json").write_text(json.dumps(rows))
    assert read_samples(large)[0].answer == "purple"
    assert len(stores(large)) == 2


def test_a_picture_that_went_is_missed(large: Path) -> None:
    read_samples(large)
    (large / "images/square_03.png").unlink()
    with pytest.raises(DataError, match="no picture 'images/square_03"):
        read_samples(large)
    assert not stores(large)


def test_a_picture_of_the_same_name_in_another_root_is_seen(large: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.move(large / "images", first / "images")
    second.mkdir()
    options = SourceOptions(images=(first, second))
    read_samples(large, options=options)
    shutil.copytree(first / "images", second / "images")
    read_samples(large, options=options)
    (second / "images/square_03.png").write_bytes(b"another")
    with pytest.raises(DataError, match="may be either of two that differ"):
        read_samples(large, options=options)


def test_pictures_named_by_whole_paths_are_stored_whatever_lies_in_another_root(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = tmp_path / "second"
    shutil.copytree(large / "images", second / "images")
    (second / "images/square_03.png").write_bytes(b"another")
    shutil.move(large / "images", tmp_path / "first" / "images")
    rows = json.loads((large / "train.json").read_text())
    for row in rows:
        row |= {"image": str(tmp_path / "first" / row["image"])} if "image" in row else {}
    (large / "train.json").write_text(json.dumps(rows))
    options = SourceOptions(images=(tmp_path / "first", second))
    stored = list(read_samples(large, options=options))
    parsed_never(monkeypatch)
    assert list(read_samples(large, options=options)) == stored


def test_a_link_that_leads_out_by_now_is_refused(large: Path, tmp_path: Path) -> None:
    read_samples(large)
    picture = large / "images/square_03.png"
    shutil.move(picture, tmp_path / "outside.png")
    picture.symlink_to(tmp_path / "outside.png")
    with pytest.raises(DataError, match="leaves the data folder"):
        read_samples(large)


def test_a_bad_sample_is_named_and_nothing_is_stored(large: Path) -> None:
    rows = json.loads((large / "train.json").read_text())
    rows[5]["conversations"][1]["value"] = " "
    (large / "train.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"sample number 5 \(id 'train-05'\): an empty assistant turn"):
        read_samples(large)
    assert not stores(large)
    (large / "train.json").write_text("[]")
    with pytest.raises(DataError, match="holds no samples"):
        read_samples(large)


def test_what_is_damaged_is_stored_again(large: Path) -> None:
    plain = list(read_samples(large))
    [place] = stores(large)
    (place / TEXTS).write_bytes((place / TEXTS).read_bytes().replace(b"red", b"blu"))
    file_digests._known.clear()
    assert list(read_samples(large)) == plain


def test_what_was_not_asked_for_in_a_month_is_removed(large: Path) -> None:
    read_samples(large)
    [place] = stores(large)
    month_ago = time.time() - 31 * 86400
    os.utime(place, (month_ago, month_ago))
    shutil.copytree(large, large.parent / "other")
    read_samples(large.parent / "other")
    assert stores(large) != [place]
    assert len(stores(large)) == 1


WORDS = st.sampled_from(["red", "<image>", "<image>\nWhat?", "<video>", "a < b", "<img>a.png</img>", "", " ", "yes"])
TURN = st.one_of(
    st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "system", "user", "x"]), "value": WORDS}),
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": WORDS}),
    st.none(),
)
RECORD = st.fixed_dictionaries(
    {"conversations": st.lists(TURN, max_size=4)},
    optional={
        "id": st.sampled_from(["a", 3, None, ""]),
        "image": st.sampled_from(["a.png", None, ["a.png", "a.png"], ""]),
        "messages": st.lists(TURN, max_size=2),
        "system": st.sampled_from(["Be brief.", None]),
        "question": st.just("q"),
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture."""
    folder = tmp_path_factory.mktemp("records")
    (folder / "a.png").write_bytes(b"x")
    return folder


def outcome(record: dict[str, Any], folder: Path) -> Any:
    try:
        return parse_sample(record, "f: line 1", "f-1", ImageFolder(folder))
    except StriateError as error:
        return str(error)


@given(RECORD)
def test_ordinary_turns_read_as_all_turns_do(folder: Path, record: dict[str, Any]) -> None:
    quick = outcome(record, folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(parsing, "plain_turns", lambda row: None)
        assert quick == outcome(record, folder)
