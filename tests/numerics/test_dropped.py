"""Narrow products of dropped values: against PyTorch's derivative, as operators, the kernels, and what is kept."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from striate.training.compile.dropped import Narrow, draw_keys, kept, narrow, narrow_back, narrow_products

Problem = tuple[Tensor, Tensor, Tensor]


def problem(count: int = 2, rank: int = 3, columns: int = 7, seed: int = 0) -> Problem:
    """Return x (2, 4, columns) and all A_i, which need gradients, and keys."""
    torch.manual_seed(seed)
    hidden = torch.randn(2, 4, columns, dtype=torch.float64).requires_grad_()
    factors = torch.randn(count, rank, columns, dtype=torch.float64).requires_grad_()
    return hidden, draw_keys(count, hidden.shape[:-1], hidden.device), factors


def formula(hidden: Tensor, keys: Tensor, factors: Tensor, probability: float) -> Tensor:
    """Return all products, written out."""
    masks = kept(keys, hidden.shape[-1], probability).to(hidden.dtype)
    return torch.einsum("nbtc,btc,nrc->nbtr", masks, hidden, factors)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.floats(0.05, 0.9), st.integers(0, 999))
def test_products_and_gradients(count: int, rank: int, columns: int, probability: float, seed: int) -> None:
    hidden, keys, factors = problem(count, rank, columns, seed)
    found, expected = (way(hidden, keys, factors, probability) for way in (Narrow.apply, formula))
    torch.testing.assert_close(found, expected)
    upwards = torch.randn_like(expected)
    sides = [torch.autograd.grad(one, [hidden, factors], upwards) for one in (found, expected)]
    for mine, theirs in zip(*sides, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_operators() -> None:
    """Fakes, gradients of none, nothing changed in place; the same numbers as the function."""
    hidden, keys, factors = (one.detach() for one in problem())
    gradient = torch.randn(2, 2, 4, 3, dtype=torch.float64)
    torch.library.opcheck(narrow, (hidden, keys, factors, 0.3))
    torch.library.opcheck(narrow_back, (gradient, keys, factors, 0.3))
    torch.testing.assert_close(narrow(hidden, keys, factors, 0.3), formula(hidden, keys, factors, 0.3))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("recomputed", [False, True])
def test_compiled_gradients(count: int, recomputed: bool) -> None:
    hidden, keys, factors = problem(count)

    def run(hidden: Tensor, factors: Tensor) -> Tensor:
        def inner(hidden: Tensor) -> Tensor:
            return Narrow.apply(hidden.sin(), keys, factors, 0.3).cos().sum()

        return checkpoint(inner, hidden, use_reentrant=False) if recomputed else inner(hidden)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    sides = [torch.autograd.grad(one(hidden, factors), [hidden, factors]) for one in (compiled, run)]
    for mine, theirs in zip(*sides, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("ranks", [(3, 3), (3, 2)])
def test_without_kernels(ranks: tuple[int, ...]) -> None:
    """The same products from PyTorch's operators, which keep neither masks nor dropped values; ranks may differ."""
    hidden, keys, factors = problem(columns=50)
    cut = [factor[:rank] for factor, rank in zip(factors.unbind(0), ranks, strict=True)]
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        found = narrow_products(hidden, keys.unbind(0), cut, 0.3)
    assert not [size for size in sizes if size > hidden.numel()]
    for one, rank, other in zip(found, ranks, formula(hidden, keys, factors, 0.3), strict=True):
        torch.testing.assert_close(one, other[..., :rank])


def test_an_input_without_gradient() -> None:
    """As in the lowest layer where the projector is frozen."""
    hidden, keys, factors = problem()
    found = Narrow.apply(hidden.detach(), keys, factors, 0.3)
    expected = formula(hidden.detach(), keys, factors, 0.3)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), factors), torch.autograd.grad(expected.sum(), factors))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_kernels_interpreted() -> None:
    """The kernels on the CPU, number by number: a process of its own, since Triton asks when it is imported."""
    code = """
import torch
from striate.training import dropped
from striate.training.kernels import interpreted
assert interpreted()
torch.manual_seed(0)
for count, rank, columns, rows in ((1, 4, 40, 3), (2, 20, 70, 66), (3, 16, 130, 129)):
    hidden, factors = torch.randn(columns, 1, rows).permute(1, 2, 0), torch.randn(count, rank, columns)
    keys = dropped.draw_keys(count, (1, rows), hidden.device)
    given = hidden, keys, factors, 0.3
    torch.testing.assert_close(dropped.narrow(*given), dropped._narrow(*given), rtol=1e-4, atol=1e-4)
    given = torch.randn(count, 1, rows, rank), keys, factors, 0.3
    torch.testing.assert_close(dropped.narrow_back(*given), dropped._narrow_back(*given), rtol=1e-4, atol=1e-4)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TRITON_INTERPRET": "1"})
