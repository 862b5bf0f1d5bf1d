"""The halves of a head turned by a flip: the same values, and a gradient without padding or joining."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from functorch.compile import min_cut_rematerialization_partition
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.backends.common import aot_autograd
from transformers.models.cohere import modeling_cohere as other
from transformers.models.llama import modeling_llama as usual

from striate.models.anatomy import decoder_layers
from striate.training.fast_layers import FastLayers
from striate.training.rotary import Rotary, rotate_half

JOINS = ("aten.cat", "aten.slice_backward", "aten.constant_pad_nd")


@given(st.integers(1, 40), st.sampled_from([torch.bfloat16, torch.float16, torch.float32]), st.integers(0, 999))
def test_the_same_bits_both_ways(half: int, dtype: torch.dtype, seed: int) -> None:
    """Against slices and a concatenation, written out."""
    generator = torch.Generator().manual_seed(seed)
    value, given_back = (torch.randn(3, 2 * half, generator=generator).to(dtype) for _ in range(2))
    ours, theirs = (value.clone().requires_grad_() for _ in range(2))
    found, expected = rotate_half(ours), torch.cat((-theirs[..., half:], theirs[..., :half]), -1)
    assert torch.equal(found, expected)
    found.backward(given_back)
    expected.backward(given_back)
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_compiled_layers_join_nothing_and_leave_the_model_file_alone(name: str, family_builder: Any) -> None:
    """Two calls make one graph each way."""
    model, _ = family_builder(name)
    layer = decoder_layers(model)[0]
    for parameter in layer.parameters():
        parameter.requires_grad = False
    joins: list[list[str]] = []

    def note(graph: Any, _: Any) -> Any:
        joins.append([str(node.target) for node in graph.graph.nodes if str(node.target).startswith(JOINS)])
        return graph

    backend: Any = aot_autograd(fw_compiler=note, bw_compiler=note, partition_fn=min_cut_rematerialization_partition)
    file = sys.modules[type(layer).__module__]
    before = file.rotate_half
    hidden = torch.randn(2, 8, 32, requires_grad=True)
    size = layer.self_attn.head_dim
    rotary = torch.randn(2, 1, 8, size).unbind(0)
    led = FastLayers([layer], backend=backend, say=pytest.fail, merged=False)
    led.install()
    for _ in range(2):
        layer(hidden, position_embeddings=rotary, attention_mask=None).sum().backward()
    led.remove()
    assert joins == [[], []]
    assert file.rotate_half is before


def test_another_rotation_stays() -> None:
    """Cohere turns neighbours, not halves."""
    modules = [other.CohereMLP.__new__(other.CohereMLP)]
    before = other.rotate_half
    with Rotary(modules).turning():
        assert other.rotate_half is before
    turned = Rotary([usual.LlamaMLP.__new__(usual.LlamaMLP)])
    with pytest.raises(ZeroDivisionError), turned.turning():
        _divide(usual.rotate_half is rotate_half)
    assert usual.rotate_half is not rotate_half


def _divide(turned: bool) -> None:
    """Fail inside the block, as a kernel may."""
    assert turned
    _ = 1 / 0
