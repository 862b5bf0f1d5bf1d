"""Finds the pictures that a data file names, and lets none lie outside the folders that are allowed. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from filecmp import cmp
from os.path import exists, isfile
from pathlib import Path

from striate.data.sources.near_names import NearNames
from striate.errors import DataError
from striate.printable import shown
from striate.storage.inside import inside

IMAGES_FOLDER = "images"


class ImageFolder:
    """The folder of a data file, and further `roots` that its pictures may lie under (`data.images`)."""

    def __init__(self, folder: Path, roots: Iterable[Path] = ()) -> None:
        self.folder = folder
        self.roots = tuple(roots)
        self._found: dict[str, Path] = {}
        self._near = NearNames()

    def find(self, name: str, place: str) -> Path:
        """Return the path of picture `name`, relative to the folder, to its images/ folder, or to one of the roots.

        A whole path, or a link, may lead into any of these.

        Raises:
            DataError: the picture is missing, or lies outside all of them (`place` says whose it is).
        """
        if name not in self._found:
            self._found[name] = self._look(name, place)
        return self._found[name]

    def _look(self, name: str, place: str) -> Path:
        kind = "data folder and data.images" if self.roots else "data folder"
        next_step = "check the name, or allow the folder that it lies in with data.images"
        roots = [(root, (name,)) for root in self.roots]
        places = [(self.folder, (name,)), (self.folder, (IMAGES_FOLDER, name)), *roots]
        for folder, parts in places:
            also = (self.folder, *self.roots)
            candidate = inside(folder, *parts, what=f"{place}: picture", kind=kind, also=also, next_step=next_step)
            if candidate.is_file():
                if folder in self.roots:
                    self._refuse_another(candidate, name, place)
                return candidate
        others = f", or inside {' or '.join(map(str, self.roots))}" if self.roots else ""
        allowed = f"a file inside {self.folder}, named relative to it or to its images/{others}"
        next_step = "check the name, name the folder that it lies in with data.images, or remove the sample"
        if near := self._near.near([folder.joinpath(*parts[:-1]) for folder, parts in places], name):
            next_step = f"write {shown(near)}, which is there{_why(name, near)}"
        raise DataError(f"{place}: no picture {shown(name)}", allowed, next_step)

    def _refuse_another(self, found: Path, name: str, place: str) -> None:
        """Raise if another of the roots has another picture of the name: nobody says which is meant."""
        others = (root / name for root in self.roots)
        for other in others:
            if _differ(found, other):
                raise DataError(
                    f"{place}: picture {shown(name)} may be either of two that differ: {found} or {other}",
                    "names that only one of the folders of data.images has",
                    "name a folder above both in data.images and the folder of each in the data, or give whole paths",
                )


def _why(name: str, near: str) -> str:
    """Return in what a wrong name differs from the right one, where that is hard to see."""
    if "\\" in name:
        return "; / stands between folders, not \\"
    return "; upper and lower case differ" if name.endswith(near) or name.lower().endswith(near.lower()) else ""


def name_in(folder: Path, picture: Path) -> str:
    """Return the picture's name in the folder; the whole path where it lies elsewhere."""
    return str(picture.relative_to(folder) if picture.is_relative_to(folder) else picture.absolute())


def _differ(picture: Path, other: Path) -> bool:
    """Return whether another file is there, with something else in it."""
    return other.is_file() and not other.samefile(picture) and not cmp(other, picture, shallow=False)


def rivals(name: str, roots: Sequence[Path]) -> bool:
    """Return whether another of the roots has another picture under the name that this one, a whole path, has there."""
    inner = _inner_names(Path(name), roots)
    return any(_differ(Path(name), root / part) for part in inner for root in roots)


def _inner_names(picture: Path, roots: Sequence[Path]) -> list[Path]:
    """Return the names of a picture in those of the roots that it lies in."""
    whole = [root.absolute() for root in roots]
    return [picture.relative_to(root) for root in whole if picture.is_relative_to(root)]


def stands(folder: Path, name: str, roots: Sequence[Path]) -> bool:
    """Return whether the picture is there, and none of that name in a folder that would be taken first."""
    if Path(name).is_absolute():
        inner = _inner_names(Path(name), roots)
        first = [place / part for part in inner for place in (folder, folder / IMAGES_FOLDER)]
        return Path(name).is_file() and not any(place.exists() for place in first)
    inner_name = name.removeprefix(f"{IMAGES_FOLDER}/")
    # As texts: 20,000 names as paths would take a second.
    place, inner_place = f"{folder}/{name}", f"{folder}/{inner_name}"
    return isfile(place) and (inner_name == name or not exists(inner_place))  # noqa: PTH110, PTH113
