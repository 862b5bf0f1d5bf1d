"""A folder's manifest: every damage of every file in it is found and named."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from striate.errors import ArtifactError
from striate.storage.fingerprints import fingerprint
from striate.storage.manifest import read_manifest, write_manifest

FILES = {"weights.bin": bytes(range(256)) * 5, "deep/state.json": b'{"a": 1}', "empty": b""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "folder"
    for name, content in FILES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    (place / "README.md").write_text("a card")
    write_manifest(place / "manifest.json", {"step": 4, "rate": 1e-5, "names": ("a", "b")})
    return place


def test_what_was_written_is_read(folder: Path) -> None:
    assert read_manifest(folder / "manifest.json") == {"step": 4, "rate": 1e-5, "names": ["a", "b"]}
    (folder / "README.md").write_text("a card with figures")
    assert read_manifest(folder / "manifest.json")["step"] == 4


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from([*FILES, "manifest.json"]), st.sampled_from(["cut", "flip", "more", "gone"]), st.data())
def test_any_damage_is_named(folder: Path, name: str, damage: str, data: st.DataObject) -> None:
    copy = folder.parent / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    file = copy / name
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "more" or not content:
        file.write_bytes(content + b"x")
    elif damage == "cut":
        file.write_bytes(content[: data.draw(st.integers(0, len(content) - 2))])
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        flipped = content[place] ^ (1 << data.draw(st.integers(0, 7)))
        file.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
    if name == "manifest.json" and damage == "flip" and not content[place : place + 1].strip():
        # One kind of white space for another.
        return
    with pytest.raises(ArtifactError, match=re.escape(str(file))):
        read_manifest(copy / "manifest.json")


def test_a_manifest_of_earlier_versions_has_no_digests(tmp_path: Path) -> None:
    (tmp_path / "complete.json").write_text('{"seed": 0}')
    assert read_manifest(tmp_path / "complete.json") == {"seed": 0}


def test_a_pipe_in_place_of_a_file_is_named_and_not_waited_for(folder: Path) -> None:
    name = next(iter(FILES))
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ArtifactError, match=f"{re.escape(name)} can't be read"):
        read_manifest(folder / "manifest.json")
    with pytest.raises(ArtifactError, match="it is no ordinary file"):
        fingerprint(folder / name)
