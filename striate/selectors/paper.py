"""The layer lists of the paper and its released code, exactly."""

from __future__ import annotations

from types import MappingProxyType
from typing import ClassVar, Self

from striate.artifacts import Scores
from striate.errors import SpecError, did_you_mean
from striate.registry import Strategy
from striate.selectors.spec.params import Selector, SpecParams

PAPER_LAYERS = 32
PAPER_LISTS = MappingProxyType(
    {
        "uniform": (0, 4, 8, 12, 18, 22, 26, 30),
        "uniform-code": (1, 5, 9, 13, 19, 23, 27, 31),
        "block-0-7": tuple(range(8)),
        "block-8-15": tuple(range(8, 16)),
        "block-16-23": tuple(range(16, 24)),
        "block-24-31": tuple(range(24, 32)),
    }
)
"""Published lists by name: the uniform list of the paper, that of its code, and its four blocks."""


class PaperParams(SpecParams):
    """Which published list."""

    forms: ClassVar[str] = ", ".join(PAPER_LISTS)
    list_name: str

    @classmethod
    def read(cls, argument: str | None) -> Self:
        """Return the params for `NAME`."""
        name = cls.required(argument)
        if name not in PAPER_LISTS:
            hint = did_you_mean(name, PAPER_LISTS) or "choose one of these"
            raise SpecError(f"the paper has no list called {name!r}", cls.forms, hint.strip())
        return cls(list_name=name)


def paper(params: PaperParams, num_layers: int, scores: Scores | None = None) -> tuple[int, ...]:
    """Return a published list of 8 layers out of 32.

    Paper: arXiv 2412.12785. Both uniform lists have one gap of six layers, so they are not `uniform:8`.

    Raises:
        SpecError: the model does not have 32 layers.
    """
    if num_layers != PAPER_LAYERS:
        raise SpecError(
            f"the paper's lists are for {PAPER_LAYERS} layers, and the model has {num_layers}",
            f"a model with {PAPER_LAYERS} layers",
            "use uniform:25% (or bottom:, middle:, top:) instead",
        )
    return PAPER_LISTS[params.list_name]


PAPER: Strategy[Selector] = Strategy(
    name="paper",
    title="Published list",
    summary="a layer list of the paper or its code, exactly (32 layers only)",
    function=paper,
    paper="https://arxiv.org/abs/2412.12785",
    params=PaperParams,
)
