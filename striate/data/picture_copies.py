"""Which pictures are the same: by what their files hold, whatever their names. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from striate.data.pictures import picture_digest, picture_size
from striate.data.sources.stored_pictures import Picture
from striate.errors import StriateError


def first_copies(pictures: Iterable[Picture]) -> dict[Picture, Picture]:
    """Return for each picture the first one that holds the same bytes, which may be itself.

    Only files of one size are read; one that can't be read is like no other.
    """
    sizes = {picture: _size(picture) for picture in pictures}
    often = Counter(sizes.values())
    firsts: dict[str, Picture] = {}
    copies: dict[Picture, Picture] = {}
    for picture, size in sizes.items():
        digest = _digest(picture) if size >= 0 and often[size] > 1 else ""
        copies[picture] = firsts.setdefault(digest, picture) if digest else picture
    return copies


def _size(picture: Picture) -> int:
    try:
        return picture_size(picture)
    except OSError:
        return -1


def _digest(picture: Picture) -> str:
    try:
        return picture_digest(picture)
    except StriateError:
        return ""
