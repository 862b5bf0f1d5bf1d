"""Files that a wrong name may mean: other case, backslashes, another ending, folders too many. For errors. No torch."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePath


class NearNames:
    """Looks for files of folders, each of which is listed once."""

    def __init__(self) -> None:
        self._listed: dict[Path, dict[str, str]] = {}

    def near(self, folders: Iterable[Path], name: str) -> str:
        """Return the name of the file in one of `folders` that `name` may mean; empty if none is near."""
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        if ".." in parts:
            return ""
        places = [(folder, parts[first:]) for first in range(len(parts)) for folder in folders]
        return next(filter(None, (self._found(folder, inner) for folder, inner in places)), "")

    def _found(self, folder: Path, parts: list[str]) -> str:
        """Return the parts as they are called there, joined by `/`; empty if one is not there."""
        called: list[str] = []
        for number, part in enumerate(parts):
            names = self._names(folder.joinpath(*called))
            there = names.get(_plain(part)) or (names.get(_stem(part)) if number == len(parts) - 1 else None)
            if there is None:
                return ""
            called.append(there)
        return "/".join(called) if folder.joinpath(*called).is_file() else ""

    def _names(self, folder: Path) -> dict[str, str]:
        """Return the names of a folder by how they are compared: whole ones, and without ending where one has that."""
        if folder not in self._listed:
            try:
                # What a link leads to may lie elsewhere.
                names = [entry.name for entry in os.scandir(folder) if not entry.is_symlink()]
            except (OSError, ValueError):
                names = []
            self._listed[folder] = {_stem(name): name for name in names} | {_plain(name): name for name in names}
        return self._listed[folder]


def _plain(name: str) -> str:
    """Return a name without case, and without the two ways of writing an accent."""
    return unicodedata.normalize("NFC", name).casefold()


def _stem(name: str) -> str:
    # A NUL separates what no file name holds.
    return f"\0{_plain(PurePath(name).stem)}"
