"""Compare visual token skipping with whole layers whose image tokens are put back, before it is trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from striate.errors import ModelError
from striate.models.io.placing import on_device
from striate.models.structure.anatomy import decoder_layers, find_anatomy, unwrap
from striate.models.visual_token_skipping.rule import VisualTokenSkipping
from striate.models.visual_token_skipping.skipped_layer import hidden_of, with_hidden
from striate.models.visual_token_skipping.visual_compute import VisualCompute

# Largest ||a - b|| / ||b|| of what whole layers give with the image tokens put back, by number format.
_TOLERANCE = {torch.bfloat16: 0.03, torch.float16: 0.01, torch.float32: 1e-3, torch.float64: 1e-6}


def check_rule(model: nn.Module, compute: VisualCompute, batch: Mapping[str, Any]) -> None:
    """Return if the rule gives on `batch` what whole layers give whose image tokens are put back afterwards.

    Raises:
        ModelError: it does not, or it can't hold for this model.
    """
    core = unwrap(model)
    inputs = on_device(core, batch)
    image_BT = find_anatomy(core).image_mask(inputs["input_ids"])
    with torch.no_grad():
        # Without a cache, as in training.
        with VisualTokenSkipping(core, compute):
            skipping = core(**inputs, use_cache=False).logits
        with put_back(decoder_layers(core), compute.skipped, image_BT):
            expected = core(**inputs, use_cache=False).logits
    attended_BT = inputs["attention_mask"].bool()
    skipping, expected = skipping[attended_BT].float(), expected[attended_BT].float()
    error = float((skipping - expected).norm() / expected.norm())
    if not error <= _TOLERANCE.get(core.dtype, _TOLERANCE[torch.bfloat16]):
        raise ModelError(
            f"image tokens can't be left out of layers of {core.config.model_type}: outputs are off by {error:.2g}",
            "decoder layers of plain attention",
            "use train.image_tokens=all",
        )


@contextmanager
def put_back(layers: nn.ModuleList, skipped: Sequence[int], image_BT: Tensor) -> Iterator[None]:
    """Run whole layers, and undo what the skipped ones do to image tokens."""
    handles = [layers[index].register_forward_hook(_undo(image_BT), with_kwargs=True) for index in skipped]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _undo(image_BT: Tensor) -> Callable[..., Any]:
    """Return a forward hook that gives image tokens the hidden states with which they entered."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        before = args[0] if args else kwargs["hidden_states"]
        after = hidden_of(output)
        if after.shape[1] != image_BT.shape[1]:
            return output
        return with_hidden(output, torch.where(image_BT[..., None], before, after))

    return hook
