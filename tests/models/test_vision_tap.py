"""The line between vision encoder and projector, in the families: cached features stand for the pictures exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from family_inputs import make_inputs
from family_rows import ROWS, Row
from family_zoo import build_model

from striate.errors import ModelError
from striate.models.interventions.vision_feature_tap import PIXELS, VisionTap

CACHED = ["llava", "llava_next", "llava_onevision", "vipllava", "gemma3", "paligemma", "idefics3", "internvl"]
REFUSED = {
    "qwen2_5_vl": "its projector lies inside the vision encoder",
    "qwen3_vl": "it has 2 projectors",
    "idefics2": "its pictures do not go from the vision encoder to the projector in one piece",
    "mllama": "it has no get_image_features",
}


def built(kind: str) -> tuple[Any, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return a frozen model, its inputs and those among them that are pictures."""
    model = build_model(kind).requires_grad_(False)
    inputs = make_inputs(model, ROWS.get(kind, Row()))
    shape = inputs["input_ids"].shape
    pictures = {
        name: value for name, value in inputs.items() if name.startswith(("pixel", "image")) or value.shape[:2] != shape
    }
    return model, inputs, pictures


@pytest.mark.parametrize("kind", CACHED)
def test_features_stand_for_pictures(kind: str) -> None:
    model, inputs, pictures = built(kind)
    tap = VisionTap(model)
    features = tap.features(pictures)
    counted = {**inputs, PIXELS: torch.ones(()).expand(inputs[PIXELS].shape)}
    with torch.no_grad():
        real = model(**inputs).logits
        with tap.serving(features):
            kept = model(**counted).logits
        with tap.serving(features.flip(-1)):
            other = model(**counted).logits
        again = model(**inputs).logits
    assert torch.equal(kept, real)
    assert torch.equal(again, real)
    assert not torch.allclose(other, real, atol=1e-3)


def test_gradients_reach_the_projector() -> None:
    model, inputs, pictures = built("llava")
    tap = VisionTap(model)
    features = tap.features(pictures)
    model.model.multi_modal_projector.requires_grad_(True)
    grown = []
    for serve in (False, True):
        if serve:
            with tap.serving(features):
                model(**inputs, labels=inputs["input_ids"]).loss.backward()
        else:
            model(**inputs, labels=inputs["input_ids"]).loss.backward()
        grown.append(model.model.multi_modal_projector.linear_1.weight.grad.clone())
        model.zero_grad()
    assert torch.equal(*grown)


def test_features_of_another_shape_are_refused() -> None:
    model, inputs, pictures = built("llava")
    tap = VisionTap(model)
    features = tap.features(pictures)
    with (
        pytest.raises(ModelError, match=r"it asks for features \(2, .*, and \(1, .* were cached"),
        tap.serving(features[:1]),
    ):
        model(**inputs)


@pytest.mark.parametrize("kind", REFUSED)
def test_refusals(kind: str) -> None:
    model, _, pictures = built(kind)
    with pytest.raises(ModelError, match=f"machine.cache_vision does not work with this model: {REFUSED[kind]}"):
        VisionTap(model).features(pictures)
