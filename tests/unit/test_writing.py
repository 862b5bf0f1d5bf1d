"""Files and folders appear whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from striate.errors import ArtifactError, DataError
from striate.storage.atomic import check_file_place, check_new_folder, new_folder, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def no_space(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_text_makes_its_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.txt"
    write_text(path, "one")
    write_text(path, "zwei é\n")
    assert path.read_text(encoding="utf-8") == "zwei é\n"
    assert names(path.parent) == ["c.txt"]


def test_text_has_the_rights_of_the_umask(tmp_path: Path) -> None:
    write_text(tmp_path / "ours", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_full_disk_keeps_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    monkeypatch.setattr(Path, "replace", no_space)
    with pytest.raises(ArtifactError) as caught:
        write_text(path, "new")
    assert str(caught.value) == (
        f"can't write {path}: No space left on device\n"
        "  allowed: a folder that you may write to, on a disk with room\n"
        "  next:    free some space or choose another folder with --out"
    )
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_text_where_a_file_stands_as_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match=r"can't write .*: (Not a directory|File exists)"):
        write_text(tmp_path / "file" / "a.txt", "x")
    with pytest.raises(ArtifactError, match=f"move {tmp_path / 'file'} away, or choose another folder"):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_text_where_a_folder_has_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    for write in (lambda: write_text(tmp_path / "a.txt", "x"), lambda: check_file_place(tmp_path / "a.txt")):
        with pytest.raises(ArtifactError) as caught:
            write()
        assert str(caught.value) == (
            f"can't write {tmp_path / 'a.txt'}: Is a directory\n"
            "  allowed: a file in that place, or nothing\n"
            f"  next:    move the folder {tmp_path / 'a.txt'} away"
        )
    assert names(tmp_path) == ["a.txt"]
    check_file_place(tmp_path / "b.txt")


def test_folder_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "new"
    with new_folder(target) as folder:
        (folder / "a").write_text("a")
        assert not target.exists()
        assert folder.parent == target.parent
    assert names(target) == ["a"]
    assert names(target.parent) == ["new"]


def test_empty_folder_may_be_taken(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with new_folder(tmp_path / "new") as folder:
        (folder / "a").write_text("a")
    assert names(tmp_path / "new") == ["a"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DataError("bad"), ValueError("bad")])
def test_folder_of_failed_work_goes(tmp_path: Path, error: BaseException) -> None:
    def work() -> None:
        with new_folder(tmp_path / "new") as folder:
            (folder / "a").write_text("a")
            raise error

    with pytest.raises(type(error)):
        work()
    assert names(tmp_path) == []


def test_full_disk_leaves_no_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match=r"can't write .*new: No space left on device"),
        new_folder(tmp_path / "new"),
    ):
        no_space()
    assert names(tmp_path) == []


def test_used_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "a").write_text("mine")
    with pytest.raises(ArtifactError, match="used exists already"), new_folder(tmp_path / "used"):
        pytest.fail("the folder must not be opened")
    assert (tmp_path / "used" / "a").read_text() == "mine"


def test_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError, match="file exists already"), new_folder(tmp_path / "file"):
        pytest.fail("the folder must not be opened")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_decides_for_what_libraries_write_into_a_folder(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with new_folder(tmp_path / "new") as folder:
            (folder / "in").mkdir()
            for name, rights in {"weights": 0o600, "in/run": 0o755, "plain": 0o666}.items():
                (folder / name).write_bytes(b"x")
                (folder / name).chmod(rights)
    finally:
        os.umask(before)
    for name in ("weights", "in/run", "plain"):
        assert (tmp_path / "new" / name).stat().st_mode & 0o777 == 0o666 & ~umask


def test_what_a_finished_folder_can_not_replace_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path / "empty")
    for path, kind in (
        (tmp_path / "link", "is a link"),
        (tmp_path / "dangling", "is a link"),
        (Path(), "has no name of its own"),
    ):
        with pytest.raises(ArtifactError, match=f"{kind}: the finished folder could not take its place"):
            check_new_folder(path)
    monkeypatch.setattr(Path, "is_mount", lambda path: True)
    with pytest.raises(ArtifactError, match="is where a disk is mounted"):
        check_new_folder(tmp_path / "empty")
