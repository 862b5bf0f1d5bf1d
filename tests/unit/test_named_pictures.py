"""A large training file is parsed once for its pictures; no change in it or under its names goes unnoticed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from striate.data import named_pictures as module
from striate.data.named_pictures import named_pictures
from striate.data.sources.source_options import SourceOptions
from striate.errors import DataError
from striate.storage import file_digests


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pack of which the pictures are noted, and which may be parsed once."""
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "WORTH_SAMPLES", 0)
    monkeypatch.setattr(file_digests, "_known", {})
    pack = tmp_path / "pack"
    (pack / "images").mkdir(parents=True)
    for name in ("a.png", "images/b.png", "images/c.png"):
        (pack / name).write_bytes(b"x")
    write(pack, "a.png", "b.png")
    assert found(pack) == ["a.png", "images/b.png"]
    return pack


def write(pack: Path, *names: str) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
    rows = [{"image": name, "conversations": turns} for name in names]
    (pack / "train.json").write_text(json.dumps(rows), encoding="utf-8")


def found(pack: Path) -> list[str]:
    return [path.relative_to(pack).as_posix() for path in named_pictures(pack)]


@pytest.fixture
def parsed_never(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, options: SourceOptions) -> None:
        raise AssertionError("parsed again")

    monkeypatch.setattr(module, "iter_samples", refuse)


@pytest.mark.usefixtures("parsed_never")
def test_the_same_file_is_not_parsed_again(pack: Path) -> None:
    assert found(pack) == ["a.png", "images/b.png"]


def test_a_change_of_equal_length_and_time_is_seen(pack: Path) -> None:
    times = (pack / "train.json").stat()
    write(pack, "a.png", "c.png")
    os.utime(pack / "train.json", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert found(pack) == ["a.png", "images/c.png"]


def test_a_picture_that_comes_to_be_taken_first_is_seen(pack: Path) -> None:
    (pack / "b.png").write_bytes(b"y")
    assert found(pack) == ["a.png", "b.png"]


def test_a_picture_that_is_gone_is_named(pack: Path) -> None:
    (pack / "images/b.png").unlink()
    with pytest.raises(DataError, match=r"no picture 'b\.png'"):
        named_pictures(pack)


def test_the_same_file_elsewhere_has_pictures_of_its_own(pack: Path) -> None:
    other = pack.with_name("other")
    (other / "images").mkdir(parents=True)
    shutil.copy2(pack / "train.json", other)
    with pytest.raises(DataError, match=r"no picture 'a\.png'"):
        named_pictures(other)


@pytest.mark.parametrize("damage", ["", "[]", "no digest\n[]"])
def test_a_damaged_note_is_none(pack: Path, tmp_path: Path, damage: str) -> None:
    [note] = (tmp_path / "cache/pictures").iterdir()
    note.write_text(damage or note.read_text().replace("images/b.png", "images/c.png"))
    assert found(pack) == ["a.png", "images/b.png"]


@pytest.mark.parametrize("cache", ["~nobody/here", "file/below", "loop"])
def test_without_a_cache_folder_it_is_parsed_at_every_call(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setenv("STRIATE_CACHE", cache if cache.startswith("~") else str(tmp_path / cache))
    monkeypatch.setattr(file_digests, "_known", {})
    monkeypatch.setattr(file_digests, "WORTH_FILES", 0)
    assert found(pack) == ["a.png", "images/b.png"]
