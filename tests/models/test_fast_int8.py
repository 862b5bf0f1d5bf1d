"""Compiled layers whose frozen matrices are in 8-bit integers: as plain ones, and no matrix kept whole."""

from __future__ import annotations

import logging
from typing import Any

import peft
import pytest
import torch

from striate.artifacts import Region
from striate.models.forecast.layer_shapes import model_shape
from striate.models.forecast.memory import SMALL_STATE_BYTES, forecast_memory
from striate.models.forecast.settings import Settings
from striate.models.structure.anatomy import decoder_layers, find_anatomy
from striate.models.structure.decoder_stack import find_decoder
from striate.models.structure.meta_model import Blueprint
from striate.models.trainable.apply import apply_region, lora_config
from striate.training.compile.regional import compiled_layers
from striate.training.precision import FrozenModules, MasterWeights
from striate.training.quantization.int8_linear import frozen_in_int8

REGION = Region(layers=(1, 3), num_layers=4, spec="ids:1,3")
logging.getLogger("torch.__trace").propagate = False


def adapted(model: Any) -> Any:
    """Return the model with adapters that do something."""
    torch.manual_seed(0)
    found = peft.get_peft_model(model, lora_config(model, REGION, r=4, alpha=8, dropout=0.0, projector="frozen"))
    apply_region(found, REGION, "lora", projector="frozen")
    for name, parameter in found.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return found


def loss_and_gradients(model: Any, ids: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
    """Return the loss, and the gradients of what trains."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False).loss
    loss.backward()
    return float(loss.detach()), [one.grad.float().clone() for one in model.parameters() if one.grad is not None]


def test_compiled_and_plain_agree_and_keep_integers(tiny_llava: Any) -> None:
    model = adapted(tiny_llava.model.to(torch.bfloat16))
    ids, lines = torch.randint(5, 100, (2, 16)), list[str]()
    kept: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    shapes = {tuple(one.weight.shape) for one in decoder_layers(model)[0].modules() if hasattr(one, "weight")}
    matrices = {shape for shape in shapes if len(shape) == 2}
    with frozen_in_int8(model, REGION, lines.append) as count:
        assert count == 14
        plain, expected = loss_and_gradients(model, ids)
        # The backend partitions as PyTorch's compiler does, and leaves out its kernels.
        with compiled_layers(model, lines.append, backend="aot_eager_decomp_partition") as layers:
            fast, found = loss_and_gradients(model, ids)
            assert layers.describe().startswith("4 of 4 layers run compiled"), lines
            layer, hidden = decoder_layers(model)[0], torch.randn(2, 61, 32, dtype=torch.bfloat16, requires_grad=True)
            rotary = find_decoder(model).rotary_emb(hidden, torch.arange(61)[None])
            with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(note, lambda one: one):
                layer(hidden, position_embeddings=rotary, attention_mask=None)
    assert fast == pytest.approx(plain, abs=0.05)
    for mine, theirs in zip(found, expected, strict=True):
        assert float((mine - theirs).norm()) <= 0.1 * float(theirs.norm()) + 1e-6
    whole = [one.dtype for one in kept if tuple(one.shape) in matrices or tuple(one.shape)[::-1] in matrices]
    assert len(whole) == 7
    assert set(whole) == {torch.int8}


def test_the_forecast_counts_the_bytes(tiny_llava: Any) -> None:
    base = tiny_llava.model.to(torch.bfloat16)
    shape = model_shape(Blueprint(base, find_anatomy(base)))
    model = peft.get_peft_model(base, lora_config(base, REGION, r=4))
    apply_region(model, REGION, "lora")
    MasterWeights(model)
    FrozenModules(model.train(), False).set_eval()
    with frozen_in_int8(model, REGION):
        held = sum(one.nbytes for one in model.parameters())
        held += sum(b.nbytes for name, b in model.named_buffers() if name.endswith(("weight_int8", ".scale")))
    settings = Settings(r=4, frozen="int8")
    found = forecast_memory(shape, REGION, settings)
    assert found.weights == pytest.approx(held, rel=0.001)
    assert found.weights < forecast_memory(shape, REGION, Settings(r=4)).weights
    small = forecast_memory(shape, REGION, Settings(r=4, optimizer="adamw-8bit"))
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert small.states == pytest.approx(2 * SMALL_STATE_BYTES * trained)
    assert small.gradients == found.gradients == 4 * trained
