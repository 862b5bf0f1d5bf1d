"""Compensation: kept layers are changed in closed form to stand in for the layers removed behind them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from striate.artifacts import CompensatedGap, Compensation, CompensationMethod
from striate.errors import ConfigError, DataError, ModelError
from striate.models.interventions.eval_mode import evaluating
from striate.models.structure.anatomy import check_decoder_only, find_anatomy, unwrap
from striate.models.trainable.parameter_selection import is_adapted
from striate.progress import Progress, Silent, warn
from striate.pruning.compensation.gaps import Gap, find_gaps, with_followers
from striate.pruning.compensation.refit_gaps import RefitGaps
from striate.pruning.compensation.scale_gaps import ScaleGaps
from striate.pruning.compensation.states import CalibrationStates
from striate.pruning.compensation.token_choice import KINDS, Tokens
from striate.scorers.streaming.batches import Batches
from striate.wording import named_layers


class GapMethod(Protocol):
    """One closed form for all gaps of a model."""

    def look(self, gaps: Sequence[Gap], inputs: Mapping[str, Any], tokens: Tokens) -> None:
        """Find the weights to change; raises ModelError where there are none, with the reason."""

    def weights(self) -> list[Tensor]:
        """Return every tensor that may change."""

    def change(self, gaps: Sequence[Gap]) -> Iterator[CompensatedGap]:
        """Change the weights for each gap, first to last, and yield what was done."""


METHODS: Mapping[str, Callable[[CalibrationStates], GapMethod]] = {"refit": RefitGaps, "scale": ScaleGaps}


def compensate(
    model: nn.Module,
    batches: Batches[Any, dict[str, Tensor]],
    removed: Collection[int],
    *,
    how: CompensationMethod,
    deep: bool = False,
    progress: Progress | None = None,
) -> Compensation:
    """Return what was changed, after changing weights of kept layers so that the layers `removed` are missed less.

    No layer is removed here (`remove_layers` does that next), and only values of weights change. Gaps are taken first
    to last, each on the model as already compensated; what is wanted at the end of a gap is what the whole model gives
    there. Tokens of pictures, of prompts and answers about them, and of samples without a picture have the same total
    weight. One sample in four is held out: it chooses the ridge, and a gap whose change helps none of them stays as it
    is. So does a gap that begins with layer 0.

    Args:
        model: an LVLM without adapters, all its layers in place.
        batches: the calibration set (`striate.pruning.greedy_ranking.calibration`), two samples or more.
        removed: layers that are to go.
        how: `refit` (`refit.py`) or `scale` (`scale_gaps.py`).
        deep: whether all kept layers behind the first gap are changed too, each for what leaves it in the whole model.
        progress: where to say how far it is.

    Raises:
        ConfigError: no such method.
        DataError: fewer than two samples.
        ModelError: a family whose layers can't be compensated, with the reason; weights are then as they were.
    """
    started = time.perf_counter()
    progress = progress or Silent()
    _check(model, batches, how)
    core, anatomy = unwrap(model), find_anatomy(model)
    check_decoder_only(anatomy)
    states = CalibrationStates(core, anatomy, batches, removed, progress)
    gaps, method = find_gaps(removed), METHODS[how](states)
    if deep and gaps:
        gaps = with_followers(gaps, anatomy.num_layers)
    inner = [gap for gap in gaps if gap.before is not None]
    done: dict[Gap, CompensatedGap] = {}
    if inner:
        with torch.no_grad(), evaluating(core):
            states.record(inner, partial(method.look, inner))
            with _restored_on_failure(method.weights()):
                for gap, change in zip(inner, method.change(inner), strict=True):
                    done[gap] = change
                    progress.say(told(change))
    return Compensation(
        method=how,
        samples=len(batches.samples),
        tokens=_counted(states.counts[0]),
        held_out=_counted(states.counts[1]),
        gaps=tuple(done.get(gap) or _first_gap(gap) for gap in gaps),
        seconds=time.perf_counter() - started,
    )


def refit_if_possible(
    model: nn.Module, batches: Batches[Any, dict[str, Tensor]], removed: Collection[int], progress: Progress
) -> Compensation | None:
    """Refit as `compensate` does; where the model or the samples do not allow it, say why and return None."""
    try:
        return compensate(model, batches, removed, how="refit", progress=progress)
    except (ModelError, DataError) as error:
        warn(progress, f"prune: nothing stands in for the layers that go: {error.given} (prune.compensate: auto)")
        return None


def told(gap: CompensatedGap) -> str:
    """Return one line about a gap."""
    layers = named_layers(gap.removed)
    if not gap.changed or gap.before is None or gap.after is None:
        return f"prune: nothing stands in for {layers}: {gap.note}"
    error = f"held-out error {gap.before:.3g} -> {gap.after:.3g}"
    if gap.scale is not None:
        return (
            f"prune: without {layers} the state is {gap.scale:.3g} times too short, what follows as much less: {error}"
        )
    return f"prune: layer {gap.layer} stands in for {layers}: {error}"


def _counted(counts_K: Tensor) -> dict[str, int]:
    """Return how many tokens there are of each kind that occurs."""
    return {kind: count for kind, count in zip(KINDS, counts_K.tolist(), strict=True) if count}


def _first_gap(gap: Gap) -> CompensatedGap:
    return CompensatedGap(removed=gap.layers, layer=None, note="there is no kept layer before it")


def _check(model: nn.Module, batches: Batches[Any, dict[str, Tensor]], how: str) -> None:
    if how not in METHODS:
        raise ConfigError(f"compensation {how!r}", f"none, {' or '.join(METHODS)}", "name one of these as compensate")
    if len(batches.samples) < 2:
        raise DataError(
            f"{len(batches.samples)} calibration samples to compensate with",
            "two or more: one to fit to, one to judge by",
            "raise prune.samples, or give more data",
        )
    if is_adapted(model):
        raise ModelError(
            "the model has adapters, and compensation changes whole weights",
            "a model without adapters",
            "merge them first: load_model(path, merge=True)",
        )


@contextmanager
def _restored_on_failure(weights: Sequence[Tensor]) -> Iterator[None]:
    former = [weight.cpu().clone() for weight in weights]
    try:
        yield
    except BaseException:
        for weight, values in zip(weights, former, strict=True):
            weight.copy_(values)
        raise
