"""Rankings for `pruning_study.py` that know of the refit: what a layer is missed for once others stand in for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from striate.artifacts import Cut, Region
from striate.pruning.compensation.compensate import compensate
from striate.pruning.greedy_ranking import Question, rank_greedily

# A copy of the tuned model, which a refit may change.
Fresh = Callable[[], Any]
# Candidates that are refitted before one of them is taken.
AMONG = 4


def after_each_cut(
    fresh: Fresh, batches: Any, region: Region, most: int, question: Question, cuts: Sequence[Cut] = ()
) -> tuple[Cut, ...]:
    """Return greedy cuts, each ranked in the model as refitted for those before it."""
    found = tuple(cuts)
    for count in range(len(found) + 1, most + 1):
        found = rank_greedily(_refitted(fresh, batches, found), batches, region, count, question, known=found)
    return found


def among_the_cheapest(fresh: Fresh, batches: Any, region: Region, most: int, question: Question) -> tuple[Cut, ...]:
    """Return greedy cuts, each the one of the cheapest candidates that costs least once it is refitted too."""
    found: tuple[Cut, ...] = ()
    for count in range(1, most + 1):
        last = after_each_cut(fresh, batches, region, count, question, found)[-1]
        shortlist = sorted(last.candidates, key=lambda layer: last.candidates[layer])[:AMONG]
        tried = {layer: (*found, last.model_copy(update={"layer": layer})) for layer in shortlist}
        costs = {layer: _cost(fresh, batches, region, cuts, question) for layer, cuts in tried.items()}
        found = tried[min(costs, key=lambda layer: costs[layer])]
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


def _cost(fresh: Fresh, batches: Any, region: Region, cuts: Sequence[Cut], question: Question) -> float:
    """Return what answers cost without the layers of `cuts`, refitted; one more round with one candidate tells."""
    gone = {cut.layer for cut in cuts}
    other = next(layer for layer in region.outside if layer not in gone)
    kept = tuple(layer for layer in range(region.num_layers) if layer not in gone | {other})
    asked = Region(layers=kept, num_layers=region.num_layers, spec="all but few", selector="ids")
    ranked = rank_greedily(_refitted(fresh, batches, cuts), batches, asked, len(cuts) + 1, question, known=cuts)
    return question.weigh(ranked[-1].before)
