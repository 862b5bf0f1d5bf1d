"""Proof, before step 1, that a packed row gives every sample what it gets alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from striate.data.collate import Collator
from striate.data.encoding import Encoded
from striate.data.packing import split_row
from striate.errors import first_line
from striate.models.interventions.eval_mode import evaluating
from striate.models.structure.decoder_stack import decoder_config, decoder_layers
from striate.training.inputs.step_inputs import SkippingInput, StepInputs
from striate.training.numerical_agreement import hidden_states, to_device, unexplained_difference
from striate.training.packing.packed_attention import PackedRow, refused
from striate.training.packing.packed_rows import Packing
from striate.training.precision import HALF

# Kernels round differently: these are shares of the size of a hidden state after the last layer.
TOLERANCE, HALF_TOLERANCE = 1e-4, 5e-2
_MOST_SAMPLES = 4


def check_packing(
    model: nn.Module, packing: Packing, collator: Collator, items: Sequence[Encoded], longest: int
) -> str:
    """Return one sentence that says how near a packed row of `items` comes to the samples alone.

    Compared are the hidden states that the LM head gets, in eval mode and without gradients.

    Args:
        model: as it trains.
        packing: of this model.
        collator: makes the batches.
        items: encoded samples, a few of which are taken.
        longest: the most tokens that a sample may have.

    Raises:
        TrainingError: they differ, or not every layer kept the samples apart; says why.
    """
    items = list(items[:_MOST_SAMPLES])
    if len(items) < 2:
        return "packing: one sample is not compared"
    device = next(model.parameters()).device
    inputs = StepInputs([packing, SkippingInput(model)], partial(to_device, device=device))
    packed_row = collator.pack(items)
    with evaluating(model), torch.no_grad():
        try:
            with inputs.on_device(packed_row) as row:
                together = hidden_states(model, row)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
            raise refused(f"its forward pass fails on a packed row: {first_line(error)}") from error
        _check_calls(model, packing.row, longest)
        half = any(one.dtype in HALF for one in model.parameters()) or torch.is_autocast_enabled(device.type)
        tolerance, worst = HALF_TOLERANCE if half else TOLERANCE, 0.0
        for item, packed in zip(items, split_row(packed_row, together), strict=True):
            alone = hidden_states(model, to_device(collator.join([item]), device))
            difference = float((packed - alone).norm() / alone.norm())
            if by := unexplained_difference(difference, tolerance, model, collator, partial(list, [item])):
                raise refused(f"samples in one row change each other's hidden states, {by}")
            worst = max(worst, difference)
    return f"packing: {len(items)} samples in one row get the hidden states they get alone (within {worst:.1e})"


def _check_calls(model: nn.Module, row: PackedRow, longest: int) -> None:
    """Refuse a model of which a layer went another way, or did not say its window."""
    config = decoder_config(model)
    kinds = getattr(config, "layer_types", None) or []
    for index, layer in enumerate(decoder_layers(model)):
        called = [row.windows[id(module)] for module in layer.modules() if id(module) in row.windows]
        if not called:
            raise refused(f"layer {index} does not attend through transformers' attention interface")
        window = getattr(config, "sliding_window", None)
        slides = index < len(kinds) and kinds[index] == "sliding_attention"
        if slides and window and window < longest and called[0] != window:
            raise refused(f"layer {index} does not hand its sliding window of {window} tokens to the interface")
