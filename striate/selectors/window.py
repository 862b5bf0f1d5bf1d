"""A block of neighbouring layers that begins where one says."""

from __future__ import annotations

import math
from typing import ClassVar, Self

from striate.artifacts import Scores
from striate.errors import SpecError
from striate.registry import Strategy
from striate.selectors.spec.params import Selector, SizeParams
from striate.selectors.spec.size import SIZE_FORMS, Size, read_place, read_size


class WindowParams(SizeParams):
    """How many layers, and how many lie below them."""

    forms: ClassVar[str] = f"{SIZE_FORMS}, and after an @ the first layer or the share below it: 8@10, 25%@40%"
    place: Size

    @classmethod
    def read(cls, argument: str | None) -> Self:
        """Return the params for `SIZE@PLACE`."""
        size, at, place = cls.required(argument).partition("@")
        if not at or not place.strip():
            raise SpecError(
                f"{argument!r} does not say where the window begins", cls.forms, "write for example 8@10 or 25%@40%"
            )
        return cls(size=read_size(size), place=read_place(place))


def window(params: WindowParams, num_layers: int, scores: Scores | None = None) -> tuple[int, ...]:
    """Return k neighbouring layers from the place on: that layer, or `floor(share * num_layers)`.

    Shares of size and place that are 100% together always fit.

    Raises:
        SpecError: the window goes past the last layer.
    """
    count, place = params.size.of(num_layers), params.place
    start = math.floor(place.ratio * num_layers) if place.ratio is not None else place.count or 0
    if start + count > num_layers:
        raise SpecError(
            f"{count} layers from layer {start} on go past the last of {num_layers} layers",
            f"a window that begins at layer 0 to {num_layers - count}",
            "begin further down, or ask for fewer layers",
        )
    return tuple(range(start, start + count))


WINDOW: Strategy[Selector] = Strategy(
    name="window",
    title="Window",
    summary="a block of neighbouring layers from a place on, such as 8@10 or 25%@40%",
    function=window,
    params=WindowParams,
)
