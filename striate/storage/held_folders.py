"""Folders that one process at a time works in: held as a run folder is, or for a moment; none is made a second time."""

import os
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from striate.errors import ArtifactError

if sys.platform != "win32":
    import fcntl

Place = tuple[int, int]


@dataclass
class _Held:
    """A held folder: its path, its open descriptor, and how many owners it has in this process."""

    path: Path
    descriptor: int
    owners: int = 0


# By device and inode.
_held: dict[Place, _Held] = {}


def hold(folder: Path, owner: Any) -> bool:
    """Keep the run folder, which exists, for this process as long as `owner` lives; return whether it is its only one.

    The system's own advisory lock on the folder: it leaves no file, and is released however the process ends. Where
    folders can't be locked (Windows, some network file systems) nothing is held, and False is returned.

    Raises:
        ArtifactError: another process works in it.
    """
    place = _place(folder)
    if place is None or sys.platform == "win32":
        return False
    first = place not in _held
    if first:
        try:
            opened = os.open(folder, os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(opened)
            if isinstance(error, BlockingIOError):
                raise _in_use(folder) from None
            return False
        _held[place] = _Held(folder.absolute(), opened)
    _held[place].owners += 1
    weakref.finalize(owner, _release, place)
    return first


@contextmanager
def alone_in(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Wait until no other process is within such a block of the same folder, which is made; where locks work.

    Yields whether that is so: without `wait` another one may be within.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield True
        return
    opened, alone = os.open(folder, os.O_RDONLY), True
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            alone = False
        except OSError:
            pass
        yield alone
    finally:
        _unlock(opened)


@contextmanager
def alone_at(path: Path, on_wait: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Wait until no other process is within such a block of the same path; `on_wait` is called where it has to.

    An empty folder lies beside `path` meanwhile; where locks don't work, nobody waits.

    Raises:
        OSError: that folder can't be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    lock = path.with_name(f".{path.name}.lock")
    opened = _locked(lock, on_wait)
    try:
        yield
    finally:
        # While it is locked: who waits for it sees that it is gone, and makes another.
        with suppress(OSError):
            lock.rmdir()
        _unlock(opened)


def _locked(lock: Path, on_wait: Callable[[], object]) -> int:
    """Return the descriptor of the folder, which is made, once this process has it for itself."""
    while True:
        # Who had it may remove it at any moment, which `exist_ok` would take for a file in its place.
        with suppress(FileExistsError):
            lock.mkdir()
        try:
            opened = os.open(lock, os.O_RDONLY)
        except FileNotFoundError:
            # Removed in between by who had it; a link to nowhere stays.
            if lock.is_symlink():
                raise
            continue
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(opened, fcntl.LOCK_EX)
        except OSError:
            return opened
        status = os.fstat(opened)
        if _place(lock) == (status.st_dev, status.st_ino):
            return opened
        os.close(opened)


def _unlock(opened: int) -> None:
    # Worker processes forked within may live on, and with them their copies of the descriptor.
    with suppress(OSError):
        fcntl.flock(opened, fcntl.LOCK_UN)
    os.close(opened)


def check_held(path: Path) -> None:
    """Check that the held folder around `path` is still where it was, so that writing there makes no second half of it.

    Raises:
        ArtifactError: it was moved or removed, or another folder took its place.
    """
    whole = path.absolute()
    around = {held.path for held in list(_held.values()) if whole.is_relative_to(held.path)}
    for folder in around:
        if _place(folder) not in _held:
            raise ArtifactError(
                f"{folder} was moved or removed while striate worked in it",
                "a run folder that stays where it is until striate has ended",
                "move it back and start the same command again, which goes on from the last checkpoint",
            )


def _place(folder: Path) -> Place | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _release(place: Place) -> None:
    held = _held.get(place)
    if held is None:
        return
    held.owners -= 1
    if not held.owners:
        os.close(_held.pop(place).descriptor)


def _let_go() -> None:
    """Close a forked child's copies: a lock lasts until all are closed, and a child may outlive a killed parent."""
    for held in _held.values():
        os.close(held.descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _in_use(folder: Path) -> ArtifactError:
    return ArtifactError(
        f"another striate is at work in {folder}",
        "one at a time in a run folder",
        "wait until it has ended, or choose another --out",
    )
