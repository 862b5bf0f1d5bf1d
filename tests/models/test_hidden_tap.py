"""The line before a decoder layer, in the families: a model goes on from kept hidden states as if it came there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from family_inputs import make_inputs
from family_rows import ROWS, Row
from family_zoo import build_model

from striate.errors import ModelError
from striate.models.interventions.hidden_state_tap import HiddenTap, without_pictures
from striate.models.structure.anatomy import decoder_layers

KEPT = {
    "llava": 4,
    "llava_next": 1,
    "llava_onevision": 4,
    "gemma3": 6,
    "paligemma": 4,
    "idefics3": 1,
    "internvl": 4,
    "mistral3": 4,
    "qwen2_vl": 4,
    "qwen2_5_vl": 1,
    "qwen3_vl": 4,
    "glm4v": 4,
}
"""The layer, by model type."""
REFUSED = {
    "gemma3n": "its decoder layers do not hand on one hidden state a token",
    "pix2struct": "layer 0 hands on more than hidden states",
}


def built(kind: str, layer: int) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return a model that is frozen below the layer, and its inputs."""
    model = build_model(kind).requires_grad_(False)
    for part in list(decoder_layers(model))[layer:]:
        part.requires_grad_(True)
    return model, make_inputs(model, ROWS.get(kind, Row()))


def learned(model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the loss and all gradients."""
    model.zero_grad()
    logits = model(**inputs, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
    loss.backward()
    found = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return {"loss": loss.detach(), **found}


@pytest.mark.parametrize("kind", KEPT)
def test_losses_and_gradients_are_the_same(kind: str) -> None:
    model, inputs = built(kind, KEPT[kind])
    tap = HiddenTap(model, KEPT[kind])
    labels = inputs["input_ids"] % model.get_output_embeddings().weight.shape[0]
    real = learned(model, inputs, labels)
    states = tap.states(inputs)
    rest = without_pictures(inputs, tuple(inputs["input_ids"].shape))
    assert not any(name.startswith("pixel") for name in rest)
    with tap.serving(states):
        kept = learned(model, rest, labels)
    with tap.serving(states.flip(-1)):
        other = learned(model, rest, labels)
    again = learned(model, inputs, labels)
    assert kept.keys() == real.keys()
    assert len(real) > 1
    for name, tensor in real.items():
        torch.testing.assert_close(kept[name], tensor, rtol=1e-5, atol=1e-7, msg=name)
        torch.testing.assert_close(again[name], tensor, rtol=1e-5, atol=1e-7, msg=name)
    assert not torch.allclose(other["loss"], real["loss"], atol=1e-5)


@pytest.mark.parametrize("kind", REFUSED)
def test_models_whose_layers_hand_on_more(kind: str) -> None:
    model, inputs = built(kind, 4)
    with pytest.raises(ModelError, match=f"machine.cache_hidden does not work .*: {REFUSED[kind]}"):
        HiddenTap(model, 4).states(inputs)


def test_nothing_below_may_train() -> None:
    model, _ = built("llava", 2)
    with pytest.raises(ModelError, match=r"layers\.2\..* trains, and is not in layer 4 or one above it"):
        HiddenTap(model, 4)


def test_states_of_another_shape_are_refused() -> None:
    model, inputs = built("llava", 4)
    tap = HiddenTap(model, 4)
    states = tap.states(inputs)
    with pytest.raises(ModelError, match=r"it asks for hidden states .*, and .* were kept"), tap.serving(states[:1]):
        model(**without_pictures(inputs, tuple(inputs["input_ids"].shape)))
