"""Compiled layers whose frozen matrices are in 8-bit floats."""

from __future__ import annotations

from typing import Any

import peft
import torch

from striate.artifacts import Region
from striate.models.trainable.apply import apply_region, lora_config
from striate.training.compile.regional import compiled_layers
from striate.training.quantization.fp8_linear import frozen_in_fp8

REGION = Region(layers=(1, 3), num_layers=4, spec="ids:1,3")


def loss_and_gradients(model: Any, ids: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
    """Return the loss, and the gradients of what trains."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False).loss
    loss.backward()
    return float(loss.detach()), [one.grad.float().clone() for one in model.parameters() if one.grad is not None]


def test_compiled_and_plain_agree(tiny_llava: Any) -> None:
    torch.manual_seed(0)
    base = tiny_llava.model.to(torch.bfloat16)
    model: Any = peft.get_peft_model(base, lora_config(base, REGION, r=4, alpha=8, dropout=0.0, projector="frozen"))
    apply_region(model, REGION, "lora", projector="frozen")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids, lines = torch.randint(5, 100, (2, 16)), list[str]()
    with frozen_in_fp8(model, REGION, lines.append) as count:
        assert count == 14
        plain, expected = loss_and_gradients(model, ids)
        with compiled_layers(model, lines.append, backend="aot_eager") as layers:
            fast, found = loss_and_gradients(model, ids)
            assert layers.describe().startswith("4 of 4 layers run compiled"), lines
    assert abs(fast - plain) < 0.05
    assert len(found) == len(expected) == 28
    for mine, theirs in zip(found, expected, strict=True):
        assert float((mine - theirs).norm()) <= 0.3 * float(theirs.norm()) + 1e-6
