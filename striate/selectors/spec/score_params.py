"""Params of selectors from scores: parses the scores that a SPEC names, looks them up and checks them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

from striate.artifacts import LayerScores, Scores
from striate.errors import SpecError
from striate.selectors.spec.params import SizeParams
from striate.selectors.spec.size import read_size


@dataclass(frozen=True)
class ScoreName:
    """One list of scores, as a SPEC names it: a scorer, on all samples or on those of one task."""

    scorer: str
    task: str | None = None

    def __str__(self) -> str:
        return self.scorer if self.task is None else f"{self.scorer}@{self.task}"


class ScoredParams(SizeParams):
    """Which scores, and how many layers; this one names one scorer, on one task if not on all samples."""

    forms: ClassVar[str] = "SCORER:SIZE or SCORER@TASK:SIZE, for example block-influence:25%"
    needs_scores: ClassVar[bool] = True
    names: tuple[ScoreName, ...]

    @classmethod
    def read(cls, argument: str | None) -> Self:
        """Return the params for `SCORER[@TASK]:SIZE`."""
        text, size = cls.split_size(argument)
        return cls(names=(cls.read_name(text, argument),), size=read_size(size))

    @classmethod
    def split_size(cls, argument: str | None) -> tuple[str, str]:
        """Return what stands before and after the last colon of `argument`.

        Raises:
            SpecError: there is no colon, or nothing before it.
        """
        text, colon, size = cls.required(argument).rpartition(":")
        if not colon or not text.strip():
            raise cls.unnamed(argument)
        return text, size

    @classmethod
    def read_name(cls, text: str, argument: str | None) -> ScoreName:
        """Return the scores that `text` names: `SCORER` or `SCORER@TASK`.

        Raises:
            SpecError: the scorer, or the task after an @, is missing.
        """
        scorer, at, task = (part.strip() for part in text.partition("@"))
        if not scorer:
            raise cls.unnamed(argument)
        if at and not task:
            raise SpecError(
                f"no task follows the @ of {text.strip()!r}",
                cls.forms,
                "name a task, or leave out the @ for all samples",
            )
        return ScoreName(scorer, task or None)

    @classmethod
    def unnamed(cls, argument: str | None) -> SpecError:
        """Return the error for an argument without scorer or size."""
        return SpecError(
            f"{argument!r} does not name a scorer and a size", cls.forms, "see `striate ls scorers` for the names"
        )


def layer_scores(name: ScoreName, num_layers: int, scores: Scores | None) -> LayerScores:
    """Return the scores called `name`, of a model with `num_layers` layers.

    Raises:
        SpecError: there are no scores, or they are of a model with another number of layers, or not finite.
        ArtifactError: that scorer was not run, or not by that task.
    """
    if scores is None:
        raise SpecError(
            "a region by scores needs scores, and there are none",
            "scores.json of the same model",
            f"run `striate analyze` with the scorer {name.scorer!r} first",
        )
    entry = scores.of(name.scorer, name.task)
    if {scores.num_layers, len(entry.values)} != {num_layers}:
        raise SpecError(
            f"the scores are of {len(entry.values)} layers, and the model has {num_layers}",
            "scores of the same model",
            "run `striate analyze` on this model",
        )
    if not all(map(math.isfinite, entry.values)):
        raise SpecError(
            f"the scores of {str(name)!r} hold values that are not numbers",
            "finite scores",
            "run `striate analyze` again",
        )
    return entry
