"""Lock a run folder, so that one process at a time works in it."""

import os
import sys
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from striate.errors import ArtifactError

if sys.platform != "win32":
    import fcntl

# Inode of a folder to its open descriptor and how many owners hold it, all in this process.
_held: dict[tuple[int, int], list[int]] = {}


def hold(folder: Path, owner: Any) -> None:
    """Keep the run folder, which exists, for this process as long as `owner` lives.

    The system's own advisory lock on the folder: it leaves no file, and is released however the process ends. Where
    folders can't be locked (Windows, some network file systems) nothing is held.

    Raises:
        ArtifactError: another process works in it.
    """
    if sys.platform == "win32":
        return
    with suppress(OSError):
        status = folder.stat()
        place = (status.st_dev, status.st_ino)
        if place not in _held:
            opened = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(opened)
                raise _in_use(folder) from None
            _held[place] = [opened, 0]
        _held[place][1] += 1
        weakref.finalize(owner, _release, place)


def _release(place: tuple[int, int]) -> None:
    entry = _held[place]
    entry[1] -= 1
    if not entry[1]:
        os.close(_held.pop(place)[0])


def _in_use(folder: Path) -> ArtifactError:
    return ArtifactError(
        f"another striate is at work in {folder}",
        "one at a time in a run folder",
        "wait until it has ended, or choose another --out",
    )
