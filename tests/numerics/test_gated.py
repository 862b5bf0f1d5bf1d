"""The gradients of a gated product: against PyTorch's derivative, the kernel, and where it stands in."""

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
from torch.nn.functional import linear, silu
from transformers.models.gemma import modeling_gemma
from transformers.models.llama import modeling_llama
from transformers.models.phi3 import modeling_phi3

from striate.training.compile.gated import gate_back, gating
from striate.training.compile.products import Gated, Turned
from striate.training.compile.rotary import turn

NAMES = ["mlp.gate_proj", "mlp.up_proj"]


def double(*shape: int) -> torch.Tensor:
    """Return random numbers that need a gradient."""
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 999))
def test_it_is_the_derivative(rows: int, columns: int, seed: int) -> None:
    torch.manual_seed(seed)
    gate, up = double(rows, columns), double(rows, columns)
    upwards = torch.randn(rows, columns, dtype=torch.float64)
    expected = torch.autograd.grad(silu(gate) * up, [gate, up], upwards)
    torch.testing.assert_close(gate_back(upwards, gate, up), torch.cat(expected, -1))


def test_halves_are_computed_in_float32() -> None:
    """Rounded once, at the end; parts of longer rows as they come."""
    torch.manual_seed(0)
    whole, upwards = torch.randn(2, 3, 16).bfloat16(), torch.randn(2, 3, 8).bfloat16()
    gate, up = whole.split(8, -1)
    expected = gate_back(upwards.double(), gate.double(), up.double())
    assert torch.equal(gate_back(upwards, gate, up), expected.float().bfloat16())


@pytest.mark.parametrize("trained", [False, True])
def test_gradients_of_the_whole_product(trained: bool) -> None:
    """With an adapter on one of the two; numerically, then the value against PyTorch's operators."""
    torch.manual_seed(0)
    hidden, weight, bias, narrow, wide = double(2, 3, 5), double(8, 5), double(8), double(2, 3, 2), double(4, 2)
    if not trained:
        weight, bias = weight.detach(), bias.detach()

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        return Gated.apply(*tensors[:3], ((4, 4), (1,), trained, ()), *tensors[3:])

    given_in = (hidden, weight, bias, narrow, wide)
    assert torch.autograd.gradcheck(run, given_in)
    gate, up = linear(hidden, weight, bias).split(4, -1)
    torch.testing.assert_close(run(*given_in), silu(gate) * (up + narrow @ wide.t()))


@pytest.mark.parametrize("trained", [False, True])
def test_gradients_of_turned_products(trained: bool) -> None:
    """Two query heads, one of keys and values; adapters on queries and values; values of their own memory."""
    torch.manual_seed(0)
    hidden, weight, cos, sin = double(2, 3, 5), double(16, 5), torch.randn(2, 1, 3, 4, dtype=torch.float64), None
    cos, sin = cos.unbind(0)
    factors = double(2, 3, 2), double(2, 3, 2), double(8, 2), double(4, 2)
    weight = weight if trained else weight.detach()

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return Turned.apply(*tensors[:2], None, ((8, 4, 4), (0, 2), trained, (2,)), cos, sin, *tensors[2:])

    assert torch.autograd.gradcheck(run, (hidden, weight, *factors))
    query, key, value = linear(hidden, weight).split([8, 4, 4], -1)
    expected = *turn(query + factors[0] @ factors[2].t(), key, cos, sin), value + factors[1] @ factors[3].t()
    for one, other in zip(run(hidden, weight, *factors), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("adapted", [(), (0,)])
def test_compiled_gradients(tokens: int, adapted: tuple[int, ...]) -> None:
    """Of both products; a single token's tensors are contiguous whatever is done to them."""
    torch.manual_seed(0)
    hidden, weight = double(1, tokens, 5), torch.randn(16, 5, dtype=torch.float64)
    cos, sin = torch.randn(2, 1, tokens, 4, dtype=torch.float64).unbind(0)
    factors = (double(1, tokens, 2), double(8, 2)) if adapted else ()

    def run(hidden: torch.Tensor, *factors: torch.Tensor) -> torch.Tensor:
        turned = Turned.apply(hidden, weight, None, ((8, 4, 4), adapted, False, (2,)), cos, sin, *factors)
        gated = Gated.apply(hidden, weight, None, ((8, 8), adapted, False, ()), *factors)
        return sum(((place + 1) * part).sin().sum() for place, part in enumerate((*turned, gated)))

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    given_in = (hidden, *factors)
    found, wanted = (torch.autograd.grad(one(*given_in), given_in) for one in (compiled, run))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def layer(file: object, name: str, **settings: int) -> nn.Module:
    """Return a decoder layer of a family."""
    config = getattr(file, f"{name}Config")(
        hidden_size=32, intermediate_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, **settings
    )
    return getattr(file, f"{name}DecoderLayer")(config, 0)


def test_where_it_stands_in_for_a_models_own() -> None:
    """Not for another activation, nor for gates and ups that are one matrix already."""
    one = layer(modeling_llama, "Llama")
    assert gating(one, NAMES) is one.mlp
    assert gating(one, [f"{name}.base_layer" for name in NAMES]) is one.mlp
    assert gating(one, NAMES[::-1]) is None
    assert gating(one, ["self_attn.q_proj", "self_attn.k_proj"]) is None
    assert gating(layer(modeling_gemma, "Gemma"), NAMES) is None
    assert gating(layer(modeling_phi3, "Phi3", pad_token_id=0), ["mlp.gate_up_proj"]) is None


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_kernel_interpreted() -> None:
    """The kernel on the CPU, number by number: a process of its own, since Triton asks when it is imported."""
    code = """
import torch
from striate.training import gated
from striate.training.kernels import interpreted
torch.manual_seed(0)
assert interpreted()
for columns in (7, 1030):
    gate, up = torch.randn(2, 3, 2 * columns).split(columns, -1)
    upwards = torch.randn(2, columns, 3).mT
    torch.testing.assert_close(gated.gate_back(upwards, gate, up), gated._plain(upwards, gate, up))
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TRITON_INTERPRET": "1"})
