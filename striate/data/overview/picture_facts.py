"""Sizes, modes and formats of pictures, those that can't be used, and those that are there twice or nearly so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from striate.data.picture_copies import first_copies
from striate.data.pictures import FORMATS, PictureLimits, open_image, pillow_source
from striate.data.sources.stored_pictures import Picture
from striate.errors import DataError

# So many are decoded at the most, to find those that look alike.
MOST_COMPARED = 5000
_SIDE, _NEAR, _DECODED = 8, 12, 128
# Of many pictures of one brightness so many are compared with each.
_MOST_BESIDE = 500
Look = NDArray[np.int16]


@dataclass(frozen=True)
class PictureFacts:
    """The distinct pictures of a source.

    Attributes:
        count: how many files, or pictures inside files, are shown.
        widths: the least, the median and the most pixels.
        heights: likewise.
        modes: how many have each of Pillow's modes, such as RGB or L.
        formats: how many are of each format.
        broken: what is wrong with those that can't be used.
        copies: how many hold the same bytes as another one.
        alike: how many look like another one of those compared, and are none of its bytes.
        compared: how many of them were decoded and compared.
    """

    count: int = 0
    widths: tuple[int, ...] = ()
    heights: tuple[int, ...] = ()
    modes: dict[str, int] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    copies: int = 0
    alike: int = 0
    compared: int = 0


def picture_facts(owners: Mapping[Picture, str], limits: PictureLimits) -> PictureFacts:
    """Return what is true of the pictures, of each of which a sample's id is given.

    Of all the header is read, and at most `MOST_COMPARED`, evenly spaced, are decoded.
    """
    if not owners:
        return PictureFacts()
    pictures = list(owners)
    chosen = pictures[:: -(-len(pictures) // MOST_COMPARED)]
    with ThreadPoolExecutor() as pool:
        headers = [found for found in pool.map(_header, pictures) if found]
        seen = list(pool.map(partial(_look, limits=limits), chosen, [owners[one] for one in chosen]))
    copies = first_copies(pictures)
    looks = {copies[one]: look for one, look in zip(chosen, seen, strict=True) if not isinstance(look, str)}
    sizes = [size for size, _, _ in headers]
    return PictureFacts(
        count=len(pictures),
        widths=_spread(width for width, _ in sizes),
        heights=_spread(height for _, height in sizes),
        modes=dict(Counter(mode for _, mode, _ in headers).most_common()),
        formats=dict(Counter(kind for _, _, kind in headers).most_common()),
        broken=tuple(look for look in seen if isinstance(look, str)),
        copies=sum(one != first for one, first in copies.items()),
        alike=_alike(list(looks.values())),
        compared=len(chosen),
    )


def _spread(values: Iterable[int]) -> tuple[int, ...]:
    found = sorted(values)
    return (found[0], int(median(found)), found[-1]) if found else ()


def _header(picture: Picture) -> tuple[tuple[int, int], str, str] | None:
    try:
        with Image.open(pillow_source(picture), formats=FORMATS) as image:
            return image.size, image.mode, image.format or ""
    # Pillow's decoders raise errors of every kind; decoding names what is wrong.
    except Exception:
        return None


def _look(picture: Picture, owner: str, limits: PictureLimits) -> Look | str:
    """Return what a picture looks like from afar, (8 x 8 x 3,) levels, or why it can't be used."""
    try:
        image = open_image(picture, owner, limits, near=(_DECODED, _DECODED))
    except DataError as error:
        return error.given
    return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.int16).reshape(-1)


def _alike(looks: list[Look]) -> int:
    """Return how many look like another one before them: no level differs by more than `_NEAR`."""
    if not looks:
        return 0
    levels_NP = np.stack(sorted(looks, key=np.sum))
    sums_N = levels_NP.sum(axis=1)
    ends_N = np.searchsorted(sums_N, sums_N + _NEAR * levels_NP.shape[1], side="right")
    found = np.zeros(len(levels_NP), dtype=bool)
    for index, end in enumerate(ends_N):
        last = min(int(end), index + 1 + _MOST_BESIDE)
        found[index + 1 : last] |= (
            np.abs(levels_NP[index + 1 : last] - levels_NP[index]).max(axis=1, initial=0) <= _NEAR
        )
    return int(found.sum())
