"""Layers that together serve several tasks, chosen greedily."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Self

from striate.artifacts import Scores
from striate.errors import SpecError
from striate.registry import Strategy
from striate.selectors.spec.params import Selector
from striate.selectors.spec.score_params import ScoredParams, ScoreName, layer_scores
from striate.selectors.spec.size import read_size


class CoverageParams(ScoredParams):
    """Which scorer, which tasks if not all that were scored, and how many layers."""

    forms: ClassVar[str] = "SCORER:SIZE (every task), or SCORER@TASK,TASK:SIZE, for example block-influence:25%"
    needs_tasks: ClassVar[bool] = True

    @classmethod
    def read(cls, argument: str | None) -> Self:
        """Return the params for `SCORER[@TASK,TASK...]:SIZE`."""
        text, size = cls.split_size(argument)
        name = cls.read_name(text, argument)
        tasks = [task.strip() for task in name.task.split(",")] if name.task else [None]
        if "" in tasks or len(set(tasks)) < len(tasks):
            raise SpecError(
                f"{name.task!r} has an empty task or one twice", cls.forms, "name each task once, with commas between"
            )
        return cls(names=tuple(ScoreName(name.scorer, task) for task in tasks), size=read_size(size))


def coverage(params: CoverageParams, num_layers: int, scores: Scores | None = None) -> tuple[int, ...]:
    """Return the k layers that greedily maximise `F(S) = sum over tasks t of sqrt(C_t(S))`.

    `C_t(S)` is the share of task t's importance that lies in S: the sum over the layers l of S of
    `w_t(l) = (s_t(l) - min s_t) / sum over all layers of (s_t - min s_t)`. The root makes a further layer for a task
    that is served already worth less than a first one for a task that is not. F is monotone and submodular, so adding
    the layer with the largest gain k times reaches at least 1 - 1/e of the optimum (Nemhauser, Wolsey and Fisher 1978,
    Mathematical Programming 14; the root of covered weight as in Lin and Bilmes 2011, ACL). Of equal gains the layer
    nearer to the input is taken. A task that scores all layers the same has no say.

    Raises:
        SpecError: there are no scores, none by task, or they are of a model with another number of layers.
        ArtifactError: that scorer was not run, or not by one of the tasks.
    """
    shares = [_shares(layer_scores(name, num_layers, scores).values) for name in _names(params, scores)]
    return tuple(sorted(greedy(shares, num_layers, params.size.of(num_layers))))


def greedy(shares: Sequence[Sequence[float]], num_layers: int, count: int) -> list[int]:
    """Return `count` layers in the order in which the greedy rule takes them."""
    covered = [0.0] * len(shares)
    chosen: list[int] = []

    def gain(layer: int) -> float:
        return math.fsum(
            math.sqrt(done + share[layer]) - math.sqrt(done) for done, share in zip(covered, shares, strict=True)
        )

    for _ in range(count):
        best = max(
            (layer for layer in range(num_layers) if layer not in chosen), key=lambda layer: (gain(layer), -layer)
        )
        covered = [done + share[best] for done, share in zip(covered, shares, strict=True)]
        chosen.append(best)
    return chosen


def _names(params: CoverageParams, scores: Scores | None) -> tuple[ScoreName, ...]:
    """Return the scores to cover: of the named tasks, or of every task that was scored."""
    if scores is None or params.names[0].task is not None:
        return params.names
    if not scores.tasks:
        raise SpecError(
            "coverage needs scores by task, and there are none",
            "scores.json with tasks",
            "run `striate analyze --by task`, on samples that name their task",
        )
    return tuple(ScoreName(params.names[0].scorer, task) for task in scores.tasks)


def _shares(values: Sequence[float]) -> tuple[float, ...]:
    """Return each layer's share of the importance above the least important layer's; zeros if there is none."""
    least = min(values)
    total = math.fsum(value - least for value in values)
    return tuple((value - least) / total if total > 0 else 0.0 for value in values)


COVERAGE: Strategy[Selector] = Strategy(
    name="coverage",
    title="Coverage of tasks",
    summary="layers that together cover what a scorer finds important for each task, chosen greedily",
    function=coverage,
    paper="https://doi.org/10.1007/BF01588971",
    params=CoverageParams,
)
