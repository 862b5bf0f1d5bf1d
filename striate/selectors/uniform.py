"""Evenly spaced layers: the paper's main strategy."""

from __future__ import annotations

import re
from typing import ClassVar, Self

from striate.artifacts import Scores
from striate.errors import SpecError
from striate.registry import Strategy
from striate.selectors.spec.params import Selector, SizeParams
from striate.selectors.spec.size import SIZE_FORMS, read_size


class UniformParams(SizeParams):
    """How many layers, and by how many layers the stripes are moved up."""

    forms: ClassVar[str] = f"{SIZE_FORMS}, each with an offset if wished: 8+1"
    offset: int = 0

    @classmethod
    def read(cls, argument: str | None) -> Self:
        """Return the params for `SIZE` or `SIZE+OFFSET`."""
        size, plus, offset = cls.required(argument).partition("+")
        if plus and not re.fullmatch(r"[0-9]{1,6}", offset.strip()):
            raise SpecError(f"the offset {offset.strip()!r} is not a whole number", cls.forms, "write for example 8+1")
        return cls(size=read_size(size), offset=int(offset) if plus else 0)


def uniform(params: UniformParams, num_layers: int, scores: Scores | None = None) -> tuple[int, ...]:
    """Return the k layers `floor(i * num_layers / k) + offset`, i = 0..k-1: gaps differ by at most one layer.

    Paper: arXiv 2412.12785, its sparse and uniform region.

    Raises:
        SpecError: the offset moves the last stripe past the last layer.
    """
    count = params.size.of(num_layers)
    last = (count - 1) * num_layers // count
    if last + params.offset >= num_layers:
        raise SpecError(
            f"the offset {params.offset} moves the last stripe to layer {last + params.offset} of {num_layers} layers",
            f"an offset of 0 to {num_layers - 1 - last} for {count} of {num_layers} layers",
            "use a smaller offset or fewer layers",
        )
    return tuple(i * num_layers // count + params.offset for i in range(count))


UNIFORM: Strategy[Selector] = Strategy(
    name="uniform",
    title="Uniform",
    summary="evenly spaced layers from the first on, moved up by an offset if wished",
    function=uniform,
    paper="https://arxiv.org/abs/2412.12785",
    params=UniformParams,
)
