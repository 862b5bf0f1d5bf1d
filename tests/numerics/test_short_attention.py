"""Attention of short samples as one operator: against float64 formulas, compiled, and its kernels where Triton is."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from striate.training.compile import short_attention as short
from striate.training.compile.short_choice import short_active, short_samples
from striate.training.packing.traced_attention import packed_inputs

LENGTHS = [5, 0, 16, 1, 0]


def drawn(batch: int, heads: int, shared: int, tokens: int, size: int) -> list[torch.Tensor]:
    """Return queries, keys and values that need gradients, in float64."""
    torch.manual_seed(0)
    counts = (heads, shared, shared)
    return [torch.randn(batch, count, tokens, size, dtype=torch.float64).requires_grad_() for count in counts]


def formula(query: Any, key: Any, value: Any, scale: float) -> Any:
    """Return softmax(scale q k') v of one sample (heads, T, head size), with a causal mask."""
    group = query.shape[0] // key.shape[0]
    out = np.empty_like(query)
    for head in range(query.shape[0]):
        scores = scale * query[head] @ key[head // group].T
        scores[np.triu_indices(scores.shape[0], 1)] = -np.inf
        weights = np.exp(scores - scores.max(1, keepdims=True))
        out[head] = weights / weights.sum(1, keepdims=True) @ value[head // group]
    return out


def test_it_is_the_formula() -> None:
    tensors = drawn(2, 6, 3, 7, 16)
    found = short.short_attention(*tensors, None, 0.3).detach().numpy()
    for row in range(2):
        expected = formula(*(tensor[row].detach().numpy() for tensor in tensors), 0.3)
        np.testing.assert_allclose(found[row].transpose(1, 0, 2), expected, rtol=1e-10)


def test_samples_of_a_row_are_apart() -> None:
    tensors = drawn(1, 4, 2, sum(LENGTHS), 16)
    ends = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
    found = short.short_attention(*tensors, ends, 0.3).detach().numpy()[0]
    start = 0
    for length in filter(None, LENGTHS):
        here = slice(start, start + length)
        expected = formula(*(tensor[0, :, here].detach().numpy() for tensor in tensors), 0.3)
        np.testing.assert_allclose(found[here].transpose(1, 0, 2), expected, rtol=1e-10)
        start += length


def test_gradients_and_what_compilers_are_told() -> None:
    tensors = drawn(2, 4, 2, 5, 16)
    ends = torch.tensor([0, 3, 5, 5], dtype=torch.int32)
    assert torch.autograd.gradcheck(lambda *given: short.short_attention(*given, None, 0.3), tensors)
    row = [tensor[:1].detach().requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(lambda *given: short.short_attention(*given, ends, 0.3), row)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(short.short_attention, (*tensors, None, 0.3), test_utils=checks)


def test_it_is_left_alone_where_it_can_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said: list[str] = []
    with short_samples(4, 2, 16, 8, said.append):
        assert not short_active()
        bound = packed_inputs([5, 3], torch.tensor([0, 5, 8], dtype=torch.int32))
    assert said == ["short samples attend by PyTorch's kernels: there is no CUDA device"]
    assert set(bound.values()) & {128} == set()
    half = torch.zeros(1, 2, 8, 16, dtype=torch.bfloat16)
    assert not short.fits(half, half, 8)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_kernels_interpreted() -> None:
    """The kernels on the CPU, number by number: a process of its own, since Triton asks when it is imported."""
    code = """
import torch
from striate.training import short_attention as short
from striate.training.kernels import interpreted
torch.manual_seed(0)
assert interpreted()
for ends, shapes in ((None, (2, 20)), (torch.tensor([0, 5, 5, 70, 71, 71], dtype=torch.int32), (1, 71))):
    q, k, v = (torch.randn(shapes[0], n, shapes[1], 32).requires_grad_() for n in (6, 3, 3))
    g = torch.randn(shapes[0], shapes[1], 6, 32)
    found = short.short_attention(q, k, v, ends, 0.2)
    plain = short._plain(q, k, v, ends, 0.2).transpose(1, 2)
    pairs = zip((found, *torch.autograd.grad(found, (q, k, v), g)), (plain, *torch.autograd.grad(plain, (q, k, v), g)))
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TRITON_INTERPRET": "1"})
