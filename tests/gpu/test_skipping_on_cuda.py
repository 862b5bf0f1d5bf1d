"""Compiled layers that image tokens skip, on CUDA: the kernel for runs of text, losses and gradients, no waiting."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from striate.artifacts import Region
from striate.config import TrainSection
from striate.models.interventions.model_rule import reading_batch
from striate.models.interventions.varlen_attention import varlen_attention_forward
from striate.models.structure.anatomy import decoder_layers
from striate.models.structure.decoder_stack import find_decoder
from striate.models.trainable.apply import apply_region
from striate.models.visual_token_skipping import skipped_layer
from striate.models.visual_token_skipping.rule import VisualTokenSkipping
from striate.models.visual_token_skipping.token_layout import TokenLayout
from striate.models.visual_token_skipping.visual_compute import VisualCompute
from striate.training.approximations import frozen_format
from striate.training.loss import answer_loss

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
IMAGE, TEXT, BATCH = 64, 56, 4
REGION = Region(layers=(0,), num_layers=4, spec="ids:0")
COMPUTE = VisualCompute(layers=(0,), num_layers=4)


def build() -> Any:
    """Return a LLaVA in bfloat16 with heads of 64, as the kernel takes them, and the region's weights open."""
    torch.manual_seed(0)
    text = LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
    )
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=112, patch_size=14
    )
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=7)
    model = LlavaForConditionalGeneration(config).to("cuda", torch.bfloat16).train()
    apply_region(model, REGION, "full")
    return model


def batch_of(before: int) -> dict[str, Any]:
    """Return samples whose picture stands behind `before` tokens."""
    torch.manual_seed(1)
    ids = torch.randint(10, 120, (BATCH, IMAGE + TEXT))
    ids[:, before : before + IMAGE] = 7
    labels = ids.clone()
    labels[:, : IMAGE + TEXT // 2] = -100
    pixels = torch.randn(BATCH, 3, 112, 112).to(torch.bfloat16)
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": pixels}
    return {name: value.cuda() for name, value in found.items()}


def step(model: Any, batch: dict[str, Any]) -> tuple[float, torch.Tensor]:
    """Return the loss and all gradients as one row."""
    model.zero_grad()
    with torch.autocast("cuda", torch.bfloat16):
        loss = answer_loss(model, batch)
    loss.backward()
    return float(loss.detach()), torch.cat(
        [one.grad.float().flatten() for one in model.parameters() if one.grad is not None]
    )


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(("heads", "groups", "size"), [(32, 1, 128), (8, 4, 64)])
def test_runs_of_text_by_the_kernel(heads: int, groups: int, size: int, window: int | None) -> None:
    """Queries of several runs, each over the keys up to its end, against a mask in float32; gradients too."""
    torch.manual_seed(0)
    image = torch.zeros(3, 150, dtype=torch.bool)
    image[0, 5:80], image[1, :60], image[2, 20:40], image[2, 90:120] = True, True, True, True
    layout = TokenLayout.of(image, torch.device("cuda"))
    assert layout is not None
    runs = layout.runs
    assert runs is not None
    assert runs.keys is not None
    assert runs.varlen is not None
    shapes = ((heads, runs.text.numel()), *[(heads // groups, runs.keys.numel())] * 2)
    tensors = [torch.randn(1, count, rows_, size, dtype=torch.bfloat16) for count, rows_ in shapes]
    found = []
    for device, dtype in (("cuda", torch.bfloat16), ("cpu", torch.float32)):
        given = [tensor.to(device, dtype, copy=True).requires_grad_(True) for tensor in tensors]
        ends: Any = {
            name: part.to(device) if isinstance(part, torch.Tensor) else part for name, part in runs.varlen.items()
        }
        out, _ = varlen_attention_forward(torch.nn.Identity(), *given, None, sliding_window=window, **ends)
        (out.float() * torch.linspace(-1, 1, out.numel(), device=device).view_as(out)).sum().backward()
        found.append([out.detach().float().cpu(), *(tensor.grad.float().cpu() for tensor in given)])  # type: ignore[union-attr]
    for one, other in zip(*found, strict=True):
        assert float((one - other).norm() / other.norm()) < 2e-2


@pytest.mark.parametrize("frozen", ["exact", "fp8"])
@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize("padded", [False, True])
def test_losses_and_gradients_of_a_mask_uncompiled(
    frozen: Any, before: int, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if frozen == "fp8" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("no 8-bit products here")
    model, batch = build(), batch_of(before)
    if padded:
        batch["attention_mask"][0, -9:] = 0
        batch["labels"][0, -9:] = -100
    with contextlib.ExitStack() as stack:
        stack.enter_context(VisualTokenSkipping(model, COMPUTE, {1: torch.randn(256)}))
        stack.enter_context(frozen_format(model, REGION, TrainSection(frozen=frozen), lambda _: None))
        with monkeypatch.context() as patch:
            patch.setattr(skipped_layer, "kernel_runs", lambda *_: False)
            loss, gradients = step(model, batch)
        for layer in decoder_layers(model):
            layer.compile(fullgraph=True)
        fast_loss, fast_gradients = step(model, batch)
    assert fast_loss == pytest.approx(loss, rel=1e-2)
    limit = 0.3 if frozen == "fp8" else 0.05
    assert float((fast_gradients - gradients).norm() / gradients.norm()) < limit


def test_nothing_waits_for_the_device() -> None:
    """Neither telling where image tokens are nor a compiled layer's two passes."""
    model, batch = build(), batch_of(5)
    ids = batch["input_ids"].cpu()
    layer = decoder_layers(model)[1]
    layer.compile(fullgraph=True)
    hidden = torch.randn(BATCH, IMAGE + TEXT, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    rotary = find_decoder(model).rotary_emb(hidden, torch.arange(IMAGE + TEXT, device="cuda")[None])
    with VisualTokenSkipping(model, COMPUTE, {1: torch.randn(256)}):
        for mode in ("default", "default", "error"):
            torch.cuda.set_sync_debug_mode(mode)
            try:
                with reading_batch(model, ids, hidden.device), torch.autocast("cuda", torch.bfloat16):
                    out = layer(hidden, position_embeddings=rotary, attention_mask=None)
                out.backward(torch.ones_like(out))
            finally:
                torch.cuda.set_sync_debug_mode("default")
