"""Parses the size in a SPEC: a number of layers, or a share of them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from striate.errors import SpecError

SIZE_FORMS = "a count such as 8, a share such as 25%, or a ratio such as 0.25"
PLACE_FORMS = "a layer counted from 0 such as 10, or the share of layers below it such as 40% or 0.4"
_COUNT = re.compile(r"[0-9]{1,6}")
_SHARE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,9})?)\s*%")
_RATIO = re.compile(r"[0-9]{0,6}\.[0-9]{1,9}")


@dataclass(frozen=True)
class Size:
    """A count of layers, or an exact share of them; `text` is what was written."""

    text: str
    count: int | None = None
    ratio: Fraction | None = None

    def of(self, num_layers: int) -> int:
        """Return k, the number of layers out of `num_layers`: the count, or `max(1, floor(ratio * num_layers + 0.5))`.

        Raises:
            SpecError: the count is larger than `num_layers`.
        """
        if self.ratio is not None:
            return max(1, math.floor(self.ratio * num_layers + Fraction(1, 2)))
        assert self.count is not None
        if self.count > num_layers:
            raise SpecError(
                f"{self.count} layers asked of a model with {num_layers} layers",
                f"1 to {num_layers} layers, or a share such as 25%",
                "ask for fewer layers, or write a share with %",
            )
        return self.count


def read_size(text: str) -> Size:
    """Return the size that `text` means: `8` is a count, `25%` a share, `0.25` (with a point) a ratio.

    Raises:
        SpecError: not a size, no layers at all, or more than all of them.
    """
    text = text.strip()
    size = _read(text)
    if size is None:
        raise SpecError(f"{text!r} is not a number of layers", SIZE_FORMS, "write for example 25%")
    if not (size.count or size.ratio):
        raise SpecError(f"{text} is no layer at all", f"more than 0: {SIZE_FORMS}", "write `none` for an empty region")
    if size.ratio is not None and size.ratio > 1:
        raise SpecError(
            f"{text} is more than all layers",
            "more than 0% and at most 100% (a ratio: more than 0 and at most 1)",
            "write a count without a point, such as 8, or a share such as 25%",
        )
    return size


def read_place(text: str) -> Size:
    """Return the place that `text` means: `10` is a layer, `40%` or `0.4` the share of layers below it.

    Raises:
        SpecError: not a place, or one above all layers.
    """
    text = text.strip()
    place = _read(text)
    if place is None:
        raise SpecError(f"{text!r} is not a place among the layers", PLACE_FORMS, "write for example 10 or 40%")
    if place.ratio is not None and place.ratio >= 1:
        raise SpecError(f"{text} is above all layers", "0% to below 100%", "write the share of layers below the place")
    return place


def _read(text: str) -> Size | None:
    """Return the count, share or ratio that `text` is, 0 included; None if it is none of these."""
    if _COUNT.fullmatch(text):
        return Size(text, count=int(text))
    if share := _SHARE.fullmatch(text):
        return Size(text, ratio=Fraction(share[1]) / 100)
    return Size(text, ratio=Fraction(text)) if _RATIO.fullmatch(text) else None
