"""Layers drawn at random: a control that any other strategy has to beat."""

from __future__ import annotations

import re
from random import Random
from typing import ClassVar, Self

from striate.artifacts import Scores
from striate.errors import SpecError
from striate.registry import Strategy
from striate.selectors.spec.params import Selector, SizeParams
from striate.selectors.spec.size import SIZE_FORMS, read_size


class RandomParams(SizeParams):
    """How many layers, and the seed of the draw."""

    forms: ClassVar[str] = f"{SIZE_FORMS}, each with a seed if wished: 8@seed3 (without one: seed0)"
    seed: int = 0

    @classmethod
    def read(cls, argument: str | None) -> Self:
        """Return the params for `SIZE` or `SIZE@seedN`."""
        size, at, seed = cls.required(argument).partition("@")
        match = re.fullmatch(r"seed([0-9]{1,18})", seed.strip())
        if at and not match:
            raise SpecError(
                f"{'@' + seed!r} is not a seed", "@seedN with N a whole number from 0", "write for example 8@seed3"
            )
        return cls(size=read_size(size), seed=int(match[1]) if match else 0)


def random(params: RandomParams, num_layers: int, scores: Scores | None = None) -> tuple[int, ...]:
    """Return k layers drawn without replacement; the same seed always gives the same layers.

    Each layer gets one number from `Random(seed).random()`, a sequence that Python keeps over its versions, and the
    k smallest win. So with one seed a smaller region lies inside every larger one.
    """
    draw = Random(params.seed)
    numbers = [draw.random() for _ in range(num_layers)]
    return tuple(sorted(sorted(range(num_layers), key=numbers.__getitem__)[: params.size.of(num_layers)]))


RANDOM: Strategy[Selector] = Strategy(
    name="random",
    title="Random",
    summary="layers drawn at random with a seed, as a control",
    function=random,
    params=RandomParams,
)
