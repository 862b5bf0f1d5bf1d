"""What compiled decoder layers keep for the backward pass: what the forecast says."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import peft
import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from striate.artifacts import Region
from striate.models.forecast import memory as forecast_memory
from striate.models.forecast.layer_shapes import model_shape
from striate.models.forecast.settings import Settings
from striate.models.interventions.model_rule import reading_batch
from striate.models.structure.anatomy import decoder_layers, find_anatomy
from striate.models.structure.decoder_stack import find_decoder
from striate.models.structure.meta_model import Blueprint
from striate.models.trainable.apply import apply_region, lora_config
from striate.models.visual_token_skipping import skipped_layer
from striate.models.visual_token_skipping.rule import VisualTokenSkipping
from striate.models.visual_token_skipping.visual_compute import VisualCompute
from striate.training.compile.regional import compiled_layers
from striate.training.precision import FrozenModules, MasterWeights

# No weight has a size that this divides: so a tensor of as many rows is an activation.
ROWS, LENGTH = 2, 61
REGION = Region(layers=(0,), num_layers=2, spec="ids:0")
RANK = 8
logging.getLogger("torch.__trace").propagate = False


def build(method: str) -> tuple[Any, Any]:
    """Return a LLaVA in bfloat16 with its first layer open, and its shape."""
    torch.manual_seed(0)
    text = LlamaConfig(
        hidden_size=128, intermediate_size=352, num_hidden_layers=2, num_attention_heads=4, vocab_size=100
    )
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    model = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_index=7))
    model = model.to(torch.bfloat16)
    shape = model_shape(Blueprint(model, find_anatomy(model)))
    if method == "lora":
        model = peft.get_peft_model(model, lora_config(model, REGION, r=RANK))
    apply_region(model, REGION, method)
    MasterWeights(model)
    FrozenModules(model.train(), False).set_eval()
    return model, shape


def kept_bytes(model: Any, index: int, image: int = 0) -> float:
    """Return the bytes a token that the compiled layer keeps, shared rotary positions left out.

    The first `image` tokens of a row are image tokens, which skip a layer outside the region.
    """
    layer = decoder_layers(model)[index]
    hidden = torch.randn(ROWS, LENGTH, 128, dtype=torch.bfloat16, requires_grad=True)
    positions = torch.arange(LENGTH)[None]
    rotary = find_decoder(model).rotary_emb(hidden, positions)
    seen: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        rows = (LENGTH, LENGTH - image) if tensor.is_floating_point() else ()
        # Rotary positions of some tokens, and the mask that stands in for a kernel, are the same for all layers.
        shared = tensor.shape[2:] == (32,) or tensor.shape[1:] == (ROWS * LENGTH,)
        if (
            not shared
            and any(tensor.numel() % count == 0 for count in rows)
            and storage.data_ptr() not in {one.untyped_storage().data_ptr() for one in rotary}
        ):
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    # Sizes that other tests have made dynamic would be partitioned otherwise.
    torch._dynamo.reset()
    # The backend differentiates and partitions as PyTorch's compiler does, and leaves out its kernels.
    lines: list[str] = []
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    ids[:, :image] = 7
    with (
        compiled_layers(model, lines.append, backend="aot_eager_decomp_partition"),
        torch.autocast("cpu", torch.bfloat16),
        reading_batch(model, ids, ids.device),
    ):
        layer(hidden, position_embeddings=rotary, attention_mask=None)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            out = layer(hidden, position_embeddings=rotary, attention_mask=None)
    assert lines == []
    assert out.shape == hidden.shape
    return sum(seen.values()) / (ROWS * LENGTH)


@pytest.mark.parametrize(("method", "index"), [("lora", 0), ("lora", 1), ("full", 0)])
def test_a_layer_keeps_what_is_forecast(method: str, index: int) -> None:
    model, shape = build(method)
    settings = Settings(method=method, r=RANK, fused=True)  # type: ignore[arg-type]
    expected = forecast_memory._own_bytes(shape.layers[index], index in REGION.layers, settings)
    assert kept_bytes(model, index) == pytest.approx(expected, rel=0.03)


def test_a_layer_that_image_tokens_skip_keeps_what_is_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    """By runs of text, for which a mask stands in here."""
    monkeypatch.setattr(skipped_layer, "kernel_runs", lambda *_: True)
    image, (model, shape) = 38, build("lora")
    shape = replace(shape, image_tokens=image)
    settings = Settings(r=RANK, fused=True, skipped=frozenset({1}), batch=1, text_tokens=LENGTH - image)
    expected = forecast_memory._own(shape, 1, REGION, settings) / LENGTH
    with VisualTokenSkipping(model, VisualCompute(layers=(0,), num_layers=2)):
        assert kept_bytes(model, 1, image) == pytest.approx(expected, rel=0.05)
