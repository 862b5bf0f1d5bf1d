"""Layers named one by one."""

from __future__ import annotations

import re
from typing import ClassVar, Self

from striate.artifacts import Scores
from striate.errors import SpecError
from striate.registry import Strategy
from striate.selectors.spec.params import Selector, SpecParams


class IdsParams(SpecParams):
    """The layers, as written."""

    forms: ClassVar[str] = "layer numbers from 0 with commas between them: 0,4,8,12"
    layers: tuple[int, ...]

    @classmethod
    def read(cls, argument: str | None) -> Self:
        """Return the params for `N,N,...`."""
        items = [item.strip() for item in cls.required(argument).split(",")]
        for item in items:
            if not re.fullmatch(r"-?[0-9]{1,6}", item):
                raise SpecError(f"{item!r} is not a layer number", cls.forms, "name each layer by its number")
        return cls(layers=tuple(map(int, items)))


def ids(params: IdsParams, num_layers: int, scores: Scores | None = None) -> tuple[int, ...]:
    """Return the named layers in rising order; whether they exist and occur once is for `Region` to say."""
    return tuple(sorted(params.layers))


IDS: Strategy[Selector] = Strategy(
    name="ids", title="By number", summary="exactly the layers that are named", function=ids, params=IdsParams
)
