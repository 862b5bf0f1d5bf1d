"""Compiled layers that image tokens pass: values, gradients, what is computed at all, and fallbacks."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from striate.artifacts import Region
from striate.models.anatomy import decoder_layers, find_anatomy
from striate.models.image_skip import ImageSkip
from striate.models.trainability import apply_region
from striate.training.answer_loss import answer_loss
from striate.training.fast_layers import FastLayers, fast_layers
from striate.training.image_function import TextAnswerFunction, TextFunction

# The compiler's trace is written for tools; capturing it takes longer than compiling.
logging.getLogger("torch.__trace").propagate = False


def opened(model: Any, *inside: int) -> Region:
    """Open a region of full weights, and return it."""
    depth = len(decoder_layers(model))
    region = Region(layers=inside or tuple(range(1, depth, 2)), num_layers=depth, spec="x")
    apply_region(model, region, "full")
    model.train()
    return region


def labelled(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs with answers at the last three positions that are not padding."""
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, mask in enumerate(inputs.get("attention_mask", torch.ones_like(labels))):
        end = int(mask.sum())
        labels[row, end - 3 : end] = inputs["input_ids"][row, end - 3 : end]
    return {**inputs, "labels": labels}


def padded(inputs: dict[str, Any], by: int) -> dict[str, Any]:
    """Return the inputs with the first row right-padded: it is cut there."""
    mask = torch.ones_like(inputs["input_ids"])
    mask[0, mask.shape[1] - by :] = 0
    return {**inputs, "attention_mask": mask}


def loss_and_gradients(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss at answers, and what it gives every parameter."""
    model.zero_grad(set_to_none=True)
    loss = answer_loss(model, batch)
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    return loss.detach(), found


def check_equal(model: Any, batch: dict[str, Any], **how: Any) -> FastLayers:
    """Check that the rule compiled gives what it gives uncompiled; return the layers."""
    loss, gradients = loss_and_gradients(model, batch)
    said: list[str] = []
    with fast_layers(model, compiled=True, say=said.append, **{"backend": "eager", **how}) as layers:
        found, found_gradients = loss_and_gradients(model, batch)
    assert not [line for line in said if "VisionBlock runs uncompiled: it can't be compiled" not in line]
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-6)
    assert found_gradients.keys() == gradients.keys()
    for name, gradient in found_gradients.items():
        error = (gradient - gradients[name]).norm() / gradients[name].norm().clamp_min(1e-9)
        assert error < 1e-4, (name, float(error), float(gradients[name].norm()))
    return layers


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "internvl", "qwen3_vl"])
@pytest.mark.parametrize("pad", [0, 2])
def test_the_same_compiled(name: str, pad: int, family_builder: Any) -> None:
    model, inputs = family_builder(name)
    region = opened(model)
    batch = labelled(padded(inputs, pad) if pad else inputs)
    with ImageSkip(model, region):
        layers = check_equal(model, batch)
    kinds = [type(function) for function in layers.functions.values()]
    assert TextFunction in kinds
    assert layers.describe().startswith(f"{region.num_layers} of {region.num_layers} decoder layers run compiled")
