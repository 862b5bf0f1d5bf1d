"""Rotation of queries and keys as operators: against complex numbers, PyTorch's derivative, and the kernel."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.models.cohere import modeling_cohere
from transformers.models.llama import modeling_llama
from transformers.models.qwen3 import modeling_qwen3

from striate.training.compile.rotary import turn, turn_back, turned_before, turning

NAMES = [f"self_attn.{name}_proj" for name in "qkv"]


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.integers(1, 6), st.booleans(), st.integers(0, 999))
def test_heads_are_complex_numbers_that_turn(
    batch: int, heads: int, tokens: int, half: int, one_row: bool, seed: int
) -> None:
    """Each pair (a, b) is a + ib, times e^(i angle); back is the transposed map, found by PyTorch's autograd."""
    torch.manual_seed(seed)
    angles = torch.randn(1 if one_row else batch, tokens, half, dtype=torch.float64)
    cos, sin = (torch.cat([part, part], -1) for part in (angles.cos(), angles.sin()))
    query, key, value = (torch.randn(batch, tokens, n * 2 * half, dtype=torch.float64) for n in (heads, 1, 1))
    found = turn(query, key, cos, sin)
    for one, other in zip(found, (query, key), strict=True):
        numbers = torch.complex(*other.unflatten(-1, (-1, 2, half)).unbind(-2))
        expected = numbers * torch.polar(torch.ones_like(angles), angles).unsqueeze(-2)
        torch.testing.assert_close(one, torch.cat([expected.real, expected.imag], -1).flatten(-2))
    torch.testing.assert_close(turn_back(*found, value, cos, sin), torch.cat([query, key, value], -1))


def test_back_is_the_derivative() -> None:
    """Also where the two halves of a head have cosines of their own, which is no rotation any more."""
    torch.manual_seed(0)
    query, key, value, cos, sin = (torch.randn(2, 5, n, dtype=torch.float64) for n in (16, 8, 8, 8, 8))
    query, key = query.requires_grad_(), key.requires_grad_()
    heads = [one.unflatten(-1, (-1, 8)).transpose(1, 2) for one in (query, key)]
    expected = modeling_llama.apply_rotary_pos_emb(*heads, cos, sin)
    upwards = [torch.randn_like(query), torch.randn_like(key)]
    turned = [one.transpose(1, 2).flatten(-2) for one in expected]
    for one, other in zip(turn(query.detach(), key.detach(), cos, sin), turned, strict=True):
        torch.testing.assert_close(one, other)
    wanted = torch.autograd.grad(turned, [query, key], upwards)
    torch.testing.assert_close(turn_back(*upwards, value, cos, sin), torch.cat([*wanted, value], -1))


def test_parts_of_longer_rows_and_positions_of_other_precision() -> None:
    """As they come: views of one product in bfloat16, cosines in float32."""
    torch.manual_seed(0)
    whole, cos, sin = torch.randn(2, 5, 32).bfloat16(), torch.randn(1, 5, 8), torch.randn(1, 5, 8)
    query, key, _ = whole.split([16, 8, 8], -1)
    found = turn(query, key, cos, sin)
    expected = turn(query.float().contiguous(), key.float().contiguous(), cos, sin)
    for one, other in zip(found, expected, strict=True):
        assert one.is_contiguous()
        assert torch.equal(one, other.bfloat16())


def layer(file: object, name: str, **settings: int) -> tuple[nn.Module, dict[str, object]]:
    """Return a decoder layer of a family, and the arguments of a call."""
    config = getattr(file, f"{name}Config")(
        hidden_size=32, intermediate_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, **settings
    )
    positions = (torch.randn(1, 5, 8), torch.randn(1, 5, 8))
    return getattr(file, f"{name}DecoderLayer")(config, 0), {"position_embeddings": positions}


def test_where_it_stands_in_for_a_models_own() -> None:
    one, kwargs = layer(modeling_llama, "Llama")
    attention = turning(one, NAMES, kwargs)
    assert attention is one.self_attn
    assert turning(one, [f"{name}.base_layer" for name in NAMES], kwargs) is attention
    original = modeling_llama.apply_rotary_pos_emb
    with turned_before([attention]):
        assert modeling_llama.apply_rotary_pos_emb("q", "k", "cos", sin="sin") == ("q", "k")
    assert modeling_llama.apply_rotary_pos_emb is original


def test_a_failure_leaves_the_models_file_as_it_was() -> None:
    one, _ = layer(modeling_llama, "Llama")
    original = modeling_llama.apply_rotary_pos_emb
    with pytest.raises(TypeError), turned_before([one.self_attn]):
        modeling_llama.apply_rotary_pos_emb("q")
    assert modeling_llama.apply_rotary_pos_emb is original


def test_where_it_does_not() -> None:
    """Norms between, neighbours that turn, heads that turn in part, no positions, other products."""
    one, kwargs = layer(modeling_llama, "Llama")
    part = {"position_embeddings": (torch.randn(1, 5, 4), torch.randn(1, 5, 4))}
    assert turning(one, NAMES, part) is None
    assert turning(one, NAMES, {}) is None
    assert turning(one, ["mlp.gate_proj", "mlp.up_proj"], kwargs) is None
    assert turning(one, NAMES[::-1], kwargs) is None
    assert turning(*_with_names(layer(modeling_qwen3, "Qwen3"))) is None
    assert turning(*_with_names(layer(modeling_cohere, "Cohere"))) is None


def _with_names(given: tuple[nn.Module, dict[str, object]]) -> tuple[nn.Module, list[str], dict[str, object]]:
    """Return the arguments of `turning`."""
    return given[0], NAMES, given[1]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_kernel_interpreted() -> None:
    """The kernel on the CPU, number by number: a process of its own, since Triton asks when it is imported."""
    code = """
import torch
from striate.training import rotary
from striate.training.kernels import interpreted
torch.manual_seed(0)
assert interpreted()
for size, positions in ((64, 2), (80, 1), (6, 2)):
    whole = torch.randn(2, 37, 6 * size)
    q, k, v = whole.split([3 * size, 2 * size, size], -1)
    cos, sin = torch.randn(positions, 37, size), torch.randn(positions, 37, size)
    for one, other in zip(rotary.turn(q, k, cos, sin), (q, k)):
        torch.testing.assert_close(one, rotary._plain(other, cos, sin, back=False))
    back = [*(rotary._plain(one, cos, sin, back=True) for one in (q, k)), v]
    torch.testing.assert_close(rotary.turn_back(q, k, v, cos, sin), torch.cat(back, -1))
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TRITON_INTERPRET": "1"})
