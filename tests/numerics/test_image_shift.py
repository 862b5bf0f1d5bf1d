"""Steps of image tokens: what they are defined by, and where they go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from striate.models.structure.anatomy import decoder_layers, find_anatomy
from striate.models.visual_token_skipping.measure_shift import measure_shift
from striate.models.visual_token_skipping.rule import VisualTokenSkipping
from striate.models.visual_token_skipping.shift import carried
from striate.models.visual_token_skipping.visual_compute import VisualCompute

COMPUTE = VisualCompute(layers=(1,), num_layers=4)


@pytest.fixture
def batch(tiny_llava: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    for layer in decoder_layers(tiny_llava.model):
        layer.mlp.down_proj.weight.data.mul_(20)
    image = find_anatomy(tiny_llava.model).image_token_ids[0]
    size = tiny_llava.model.config.vision_config.image_size
    count = (size // tiny_llava.model.config.vision_config.patch_size) ** 2
    ids = torch.randint(5, 90, (2, count + 8))
    ids[:, 3 : 3 + count] = image
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(2, 3, size, size),
    }


def image_means(model: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    """Return the mean of image tokens after each layer, from the model's own list of hidden states."""
    image_BT = find_anatomy(model).image_mask(batch["input_ids"])
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
    return [state[image_BT].mean(0) for state in states[1:]]


def test_means_under_the_rule_are_those_of_all_layers(tiny_llava: Any, batch: dict[str, Tensor]) -> None:
    model = tiny_llava.model.eval()
    exact = image_means(model, batch)
    shift = measure_shift(model, COMPUTE, [batch])
    # Layer 3 is the last: the model's last hidden state is behind its norm, and nothing reads image tokens there.
    assert sorted(shift) == [0, 2]
    with VisualTokenSkipping(model, COMPUTE):
        assert (image_means(model, batch)[2] - exact[2]).norm() > 0.1 * exact[2].norm()
    with VisualTokenSkipping(model, COMPUTE, shift):
        ruled = image_means(model, batch)
    for layer in (0, 2):
        torch.testing.assert_close(ruled[layer], exact[layer], atol=1e-5, rtol=1e-4)


def test_batches_are_averaged(tiny_llava: Any, batch: dict[str, Tensor]) -> None:
    other = {**batch, "pixel_values": batch["pixel_values"].flip(0) * 2}
    one, two, both = (measure_shift(tiny_llava.model, COMPUTE, some) for some in ([batch], [other], [batch, other]))
    for layer in (0, 2):
        torch.testing.assert_close(both[layer], (one[layer] + two[layer]) / 2)


def test_measuring_leaves_the_model_as_it_was(tiny_llava: Any, batch: dict[str, Tensor]) -> None:
    model = tiny_llava.model.train()
    measure_shift(model, COMPUTE, [batch])
    assert model.training
    assert all(not layer._forward_hooks and "forward" not in vars(layer) for layer in decoder_layers(model))


@pytest.mark.parametrize("layer", [0, 1])
def test_a_step_moves_image_tokens_alone_and_passes_gradients(
    tiny_llava: Any, batch: dict[str, Tensor], layer: int
) -> None:
    """Also behind a layer that computes image tokens, which may have the step of one that was removed."""
    model, step = tiny_llava.model.eval(), torch.randn(tiny_llava.model.config.text_config.hidden_size)
    image_BT = find_anatomy(model).image_mask(batch["input_ids"])
    states = []
    for shift in ({}, {layer: step}):
        with VisualTokenSkipping(model, COMPUTE, shift):
            states.append(model(**batch, output_hidden_states=True).hidden_states)
    without, moved = (state[layer + 1] for state in states)
    torch.testing.assert_close(moved, without + image_BT[..., None] * step)
    (gradient,) = torch.autograd.grad(moved.sum(), states[1][layer])
    (expected,) = torch.autograd.grad(without.sum(), states[0][layer])
    torch.testing.assert_close(gradient, expected)


def test_steps_of_lost_layers_go_to_the_layer_below() -> None:
    shift = {layer: torch.full((2,), float(10**layer)) for layer in (0, 2, 3, 5)}
    moved = carried(shift, {1: 0, 2: 1, 4: 2, 5: 3})
    assert {layer: step[0].item() for layer, step in moved.items()} == {1: 1100.0, 3: 100000.0}
