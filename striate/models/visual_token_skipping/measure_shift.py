"""Measure the constant steps of image tokens in the layers that they skip (`train.image_shift`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from striate.models.interventions.eval_mode import evaluating
from striate.models.io.placing import on_device
from striate.models.structure.anatomy import decoder_layers, find_anatomy, unwrap
from striate.models.visual_token_skipping.rule import VisualTokenSkipping
from striate.models.visual_token_skipping.shift import Shift
from striate.models.visual_token_skipping.skipped_layer import hidden_of, with_hidden
from striate.models.visual_token_skipping.visual_compute import VisualCompute


def measure_shift(model: nn.Module, compute: VisualCompute, batches: Sequence[Mapping[str, Any]]) -> Shift:
    """Return the steps b_l (D,), float32 on the CPU, of the layers that image tokens skip (`shift`).

    The last layer has none, since nothing reads image tokens behind it. Each batch is run twice, without gradients.

    Args:
        model: without a rule.
        compute: which layers compute image tokens.
        batches: inputs; each that has pictures gives a mean, and these are averaged. Without any there are no steps.

    Raises:
        ModelError: the rule can't hold for this model.
    """
    core = unwrap(model)
    skipped = [layer for layer in compute.skipped if layer < compute.num_layers - 1]
    steps: dict[int, list[Tensor]] = {layer: [] for layer in skipped}
    with evaluating(model), torch.no_grad():
        for batch in batches:
            inputs = {name: value for name, value in on_device(core, batch).items() if name != "labels"}
            image_BT = find_anatomy(core).image_mask(inputs["input_ids"])
            if not bool(image_BT.any()):
                continue
            means: dict[int, Tensor] = {}
            with _after(core, skipped, partial(_note_mean, means, image_BT)):
                core(**inputs, use_cache=False)
            with VisualTokenSkipping(core, compute), _after(core, skipped, partial(_step, means, image_BT, steps)):
                core(**inputs, use_cache=False)
    return {layer: torch.stack(measured).mean(0).cpu() for layer, measured in steps.items() if measured}


def _note_mean(means: dict[int, Tensor], image_BT: Tensor, layer: int, out: Tensor) -> None:
    """Keep the mean of image tokens' hidden states after a whole layer."""
    means[layer] = out[image_BT].float().mean(0)


def _step(
    means: Mapping[int, Tensor], image_BT: Tensor, steps: dict[int, list[Tensor]], layer: int, out: Tensor
) -> Tensor:
    """Return the layer's output with image tokens moved to their mean, and keep by how much."""
    step = means[layer] - out[image_BT].float().mean(0)
    steps[layer].append(step)
    return torch.where(image_BT[..., None], out + step.to(out.dtype), out)


@contextmanager
def _after(core: nn.Module, layers: Sequence[int], change: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
    """Call `change(layer, output)` after each of the layers; what it returns takes the output's place."""

    def hook(layer: int, _: nn.Module, args: Any, output: Any) -> Any:
        changed = change(layer, hidden_of(output))
        return None if changed is None else with_hidden(output, changed)

    handles = [decoder_layers(core)[layer].register_forward_hook(partial(hook, layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
