"""Params of selectors: pydantic models that parse the text after the colon of a SPEC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self, TypeAlias

from pydantic import BaseModel, ConfigDict

from striate.artifacts import Scores
from striate.errors import SpecError
from striate.selectors.spec.size import SIZE_FORMS, Size, read_size

Selector: TypeAlias = Callable[[Any, int, Scores | None], tuple[int, ...]]
"""A pure function `(params, num_layers, scores) -> layers`: sorted, 0-based; `scores` is None where none exist."""


class SpecParams(BaseModel):
    """Base of selector params; this one takes no argument (`all`, `none`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    forms: ClassVar[str] = "no argument"
    needs_scores: ClassVar[bool] = False
    """Whether layers can't be chosen without scores."""
    needs_tasks: ClassVar[bool] = False
    """Whether those have to be scores by task."""

    @classmethod
    def read(cls, argument: str | None) -> Self:
        """Return the params that `argument` means; None stands for a SPEC without a colon.

        Raises:
            SpecError: the argument does not have one of `forms`.
        """
        if argument is not None:
            raise SpecError(f"unexpected {':' + argument!r}", cls.forms, "leave out the colon and what follows it")
        return cls()

    def removable(self, num_layers: int, scores: Scores | None) -> tuple[int, ...]:
        """Return layers outside the region that the selector itself gives up, the most redundant first; mostly none."""
        return ()

    @classmethod
    def required(cls, argument: str | None) -> str:
        """Return `argument`, stripped.

        Raises:
            SpecError: there is none.
        """
        if argument is None or not argument.strip():
            raise SpecError("nothing follows the name", cls.forms, "add a colon and one of these")
        return argument.strip()


class SizeParams(SpecParams):
    """How many layers."""

    forms: ClassVar[str] = SIZE_FORMS
    size: Size

    @classmethod
    def read(cls, argument: str | None) -> Self:
        """Return the params for `SIZE`."""
        return cls(size=read_size(cls.required(argument)))
