"""Rankings for `pruning_study.py` that know of the refit: what a layer is missed for once others stand in for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from striate.artifacts import Cut, Region
from striate.pruning.compensation.compensate import compensate
from striate.pruning.greedy_ranking import Question, rank_greedily

# A copy of the tuned model, which a refit may change.
Fresh = Callable[[], Any]


def after_each_cut(fresh: Fresh, batches: Any, region: Region, most: int, question: Question) -> tuple[Cut, ...]:
    """Return greedy cuts, each ranked in the model as refitted for those before it."""
    found: tuple[Cut, ...] = ()
    for count in range(1, most + 1):
        found = rank_greedily(_refitted(fresh, batches, found), batches, region, count, question, known=found)
    return found


def by_error(fresh: Fresh, batches: Any, region: Region, most: int) -> tuple[Cut, ...]:
    """Return the layers whose refit, of each alone, leaves the smallest error on held-out tokens, as cuts."""
    errors: dict[int, float] = {}
    for layer in region.outside:
        (gap,) = compensate(fresh(), batches, [layer], how="refit").gaps
        errors[layer] = float("inf") if gap.after is None else gap.after
    layers = sorted(errors, key=lambda layer: errors[layer])[:most]
    return tuple(Cut(layer=layer, before={}, after={}, candidates=errors) for layer in layers)


def _refitted(fresh: Fresh, batches: Any, cuts: Sequence[Cut]) -> Any:
    model = fresh()
    compensate(model, batches, [cut.layer for cut in cuts], how="refit")
    return model
