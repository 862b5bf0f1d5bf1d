"""Digests of files, remembered: a file is read again only where its size, times or place on the disk changed."""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Iterable
from pathlib import Path

from striate.storage.noted import read_note, write_note

KIND = "digests"
WORTH_BYTES, WORTH_FILES = 8 * 2**20, 1000
"""Folders of less are read again by the next process."""

# Name to size, times, inode and digest, of the files of each folder.
Entry = tuple[int, int, int, int, str]
_known: dict[Path, dict[str, Entry]] = {}


def file_digests(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of each of the `files`, by their names in `folder`, or whole paths if they lie elsewhere.

    Raises:
        OSError: one can't be read.
    """
    root = folder.absolute()
    known = _known[root] if root in _known else _known.setdefault(root, _read(root))
    found: dict[str, Entry] = {}
    changed = False
    # As texts: 20,000 paths compared part by part would take half a second.
    within = "" if folder == Path() else f"{folder.as_posix().rstrip('/')}/"
    for file in files:
        text = file.as_posix()
        name = text.removeprefix(within) if text.startswith(within) else file.absolute().as_posix()
        state = _state(file)
        entry = known.get(name)
        if entry is None or entry[:4] != state:
            begin = time.time_ns()
            entry = (*state, digest_of(file))
            if _settled(state, begin) and _state(file) == state:
                known[name] = entry
                changed = True
        found[name] = entry
    if changed and (len(found) > WORTH_FILES or sum(entry[0] for entry in found.values()) > WORTH_BYTES):
        write_note(KIND, _name(root), known)
    return {name: entry[4] for name, entry in found.items()}


def digest_of(file: Path) -> str:
    """Return the SHA-256 of `file`.

    Raises:
        OSError: it can't be read, or is a pipe or a device, which may have no end.
    """
    if file.exists() and not file.is_file():
        raise OSError(errno.EINVAL, "it is no ordinary file", str(file))
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _state(file: Path) -> tuple[int, int, int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _settled(state: tuple[int, int, int, int], begin: int) -> bool:
    """Return whether a change after `begin` would show: a clock of whole seconds or ticks may give it the same time."""
    times = state[1:3]
    tick = 2 * 10**9 if all(moment % 10**9 == 0 for moment in times) else 10**8
    return max(times) < begin - tick


def _read(root: Path) -> dict[str, Entry]:
    """Return what earlier processes noted of a folder."""
    return {name: tuple(entry) for name, entry in (read_note(KIND, _name(root)) or {}).items()}


def _name(root: Path) -> str:
    return hashlib.sha256(bytes(root)).hexdigest()[:32]
