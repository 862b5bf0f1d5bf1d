"""One plain forward pass over the calibration set, for all scorers of hidden states and attention."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from striate.models.io.placing import on_device
from striate.models.structure.anatomy import decoder_layers
from striate.progress import Advance
from striate.scorers.base import LayerScorer
from striate.scorers.runners.runner import Calibration, Runner
from striate.scorers.statistics.measurement import Measurement
from striate.scorers.streaming.masks import token_masks
from striate.scorers.streaming.stream import LayerStream


def run_pass(calibration: Calibration, scorers: Sequence[LayerScorer], advance: Advance) -> list[Measurement]:
    """Return what each scorer whose source is `hidden states` or `attention` measured, samples in their order.

    Every batch takes one forward pass with logits of one position; a batch that does not fit is halved and tried again,
    and nothing of its first attempt counts. Rows of a batch may hold several samples each.

    Raises:
        ModelError: layers that can't be scored by input and output, attention that can't be watched, or a sample that
            does not fit into memory.
    """
    core = calibration.core
    options = forward_options(core)

    def work(batch: dict[str, Tensor]) -> None:
        # Masks are made where the batch was collated: their counts and indices then need no wait for the device.
        masks = token_masks(batch, calibration.anatomy)
        with stream.batch(masks):
            core(**on_device(core, batch), **options)

    with torch.no_grad(), LayerStream(decoder_layers(core), scorers) as stream:
        calibration.batches.each(work, advance)
    return [
        Measurement(scorer, stream.results(scorer.name), stream.spans() if scorer.spans else None) for scorer in scorers
    ]


ONE_PASS = Runner(("hidden states", "attention"), run_pass, "analyze")


def forward_options(core: Any) -> dict[str, Any]:
    """Return how to keep the forward pass small: no cache, logits of one position only, where it takes such options."""
    parameters = inspect.signature(core.forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    options: dict[str, Any] = {}
    if "use_cache" in parameters or takes_any:
        options["use_cache"] = False
    if "logits_to_keep" in parameters:
        options["logits_to_keep"] = 1
    return options
