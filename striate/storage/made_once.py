"""Folders of the cache that are fetched or built once, by one process at a time, and again where they are damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from striate.progress import Progress, warn
from striate.storage.atomic import cannot_write, new_folder, remove_temporaries, write_text
from striate.storage.fingerprints import fingerprint_files
from striate.storage.held_folders import alone_in

DIGEST_FILE = ".digest"


def made_once(target: Path, make: Callable[[Path], object], progress: Progress) -> Path:
    """Return the folder `target`, after `make` filled it unless it is there and whole; nothing of it is left half-made.

    A folder of earlier versions, which has no digest, is taken as it is and gets one.

    Raises:
        ArtifactError: it can't be written, or the disk is full.
        StriateError: whatever `make` raises.
    """
    if _is_whole(target):
        return target
    try:
        with alone_in(target.parent):
            # Another process may have made it meanwhile.
            if not _is_whole(target):
                _make(target, make, progress)
    except OSError as error:
        raise cannot_write(target, error) from error
    return target


def _make(target: Path, make: Callable[[Path], object], progress: Progress) -> None:
    remove_temporaries(target.parent)
    if target.exists() and not (target / DIGEST_FILE).exists() and any(target.iterdir()):
        write_text(target / DIGEST_FILE, _digest(target))
        return
    if target.exists() and any(target.iterdir()):
        warn(progress, f"{target} is damaged: it is made again")
        shutil.rmtree(target)
    with new_folder(target) as folder:
        make(folder)
        write_text(folder / DIGEST_FILE, _digest(folder))


def _is_whole(target: Path) -> bool:
    with suppress(OSError, UnicodeDecodeError):
        return (target / DIGEST_FILE).read_text(encoding="utf-8") == _digest(target)
    return False


def _digest(folder: Path) -> str:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != DIGEST_FILE]
    return fingerprint_files(folder, files)
