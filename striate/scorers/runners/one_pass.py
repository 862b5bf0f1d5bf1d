"""One plain forward pass over the calibration set, for all scorers of hidden states and attention."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from striate.models.io.placing import on_device
from striate.models.structure.anatomy import Anatomy, decoder_layers
from striate.progress import Advance
from striate.scorers.base import LayerScorer
from striate.scorers.runners.runner import Calibration, Runner
from striate.scorers.statistics.measurement import Measurement
from striate.scorers.statistics.sums import PartSums
from striate.scorers.streaming.batches import Batches
from striate.scorers.streaming.masks import token_masks
from striate.scorers.streaming.spans import Spans
from striate.scorers.streaming.stream import LayerStream


@dataclass(frozen=True)
class Passed:
    """What one pass found: sums by scorer and part, and the angles of spans (N, L, L) by scorer that has some."""

    sums: dict[str, dict[str, PartSums]]
    spans: dict[str, Spans] = field(default_factory=dict)


def run_pass(core: Any, anatomy: Anatomy, batches: Batches, scorers: Sequence[LayerScorer], advance: Advance) -> Passed:
    """Return the sums of each scorer whose source is `hidden states` or `attention`, samples in their order.

    Every batch takes one forward pass with logits of one position; a batch that does not fit is halved and tried again,
    and nothing of its first attempt counts.

    Args:
        core: an LVLM in eval mode, without wrappers.
        anatomy: its parts.
        batches: training batches, answers labelled; rows may hold several samples each.
        scorers: those to run.
        advance: called with the number of samples done.

    Raises:
        ModelError: layers that can't be scored by input and output, attention that can't be watched, or a sample that
            does not fit into memory.
    """
    options = _forward_options(core)

    def work(batch: dict[str, Tensor]) -> None:
        # Masks are made where the batch was collated: their counts and indices then need no wait for the device.
        masks = token_masks(batch, anatomy)
        with stream.batch(masks):
            core(**on_device(core, batch), **options)

    with torch.no_grad(), LayerStream(decoder_layers(core), scorers) as stream:
        batches.each(work, advance)
    sums = {scorer.name: stream.results(scorer.name) for scorer in scorers}
    return Passed(sums, {scorer.name: stream.spans() for scorer in scorers if scorer.spans})


def _measure(calibration: Calibration, scorers: Sequence[LayerScorer], advance: Advance) -> list[Measurement]:
    passed = run_pass(calibration.core, calibration.anatomy, calibration.batches, scorers, advance)
    return [Measurement(scorer, passed.sums[scorer.name], passed.spans.get(scorer.name)) for scorer in scorers]


ONE_PASS = Runner(("hidden states", "attention"), _measure, "analyze")


def _forward_options(core: Any) -> dict[str, Any]:
    """Return how to keep the forward pass small: no cache, logits of one position only, where it takes such options."""
    parameters = inspect.signature(core.forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    options: dict[str, Any] = {}
    if "use_cache" in parameters or takes_any:
        options["use_cache"] = False
    if "logits_to_keep" in parameters:
        options["logits_to_keep"] = 1
    return options
