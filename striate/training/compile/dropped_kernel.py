"""Triton kernels for narrow products of dropped values: dropout happens between memory and product."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from striate.training.compile.dropped import FIRST, SECOND, STRIDE

_FIRST, _SECOND, _STRIDE = tl.constexpr(FIRST), tl.constexpr(SECOND), tl.constexpr(STRIDE)
# Rows and columns of one program's step; fewer rows where there are too few programs for a card.
_ROWS, _COLUMNS, _FEW = 64, 64, 256
# On the way back programs write wider parts: what they read is shared by more results.
_WIDE = 128


@triton.jit
def _kept(key: tl.tensor, column: tl.tensor, least: tl.tensor):  # type: ignore[no-untyped-def]  # noqa: ANN202
    """Return which values of some rows and columns are kept, see `dropped.kept`."""
    bits = key[:, None] + (column * _STRIDE)[None, :]
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * _FIRST
    bits = (bits ^ ((bits >> 15) & 0x1FFFF)) * _SECOND
    return bits >= least


@triton.jit
def narrow_kernel(  # type: ignore[no-untyped-def]  # noqa: ANN201
    hidden: tl.tensor,
    factors: tl.tensor,
    found: tl.tensor,
    keys: tl.tensor,
    rows: tl.tensor,
    rank: tl.tensor,
    hidden_row: tl.tensor,
    least: tl.tensor,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANK: tl.constexpr,
):
    """Write h_i of some rows."""
    place = tl.program_id(0).to(tl.int64)
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    inside = row < rows
    key = tl.load(keys + place * rows + row, mask=inside, other=0)
    narrow = tl.arange(0, RANK)
    total = tl.zeros((ROWS, RANK), dtype=tl.float32)
    for start in range(0, WIDTH, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        there = column < WIDTH
        value = tl.load(
            hidden + row[:, None] * hidden_row + column[None, :], mask=inside[:, None] & there[None, :], other=0.0
        )
        value = tl.where(_kept(key, column, least), value, 0.0).to(value.dtype)
        factor = tl.load(
            factors + (place * rank + narrow[None, :]) * WIDTH + column[:, None],
            mask=there[:, None] & (narrow < rank)[None, :],
            other=0.0,
        )
        total = tl.dot(value, factor, total)
    target = found + (place * rows + row[:, None]) * rank + narrow[None, :]
    tl.store(target, total.to(found.dtype.element_ty), mask=inside[:, None] & (narrow < rank)[None, :])


@triton.jit
def back_kernel(  # type: ignore[no-untyped-def]  # noqa: ANN201
    gradient: tl.tensor,
    factors: tl.tensor,
    found: tl.tensor,
    keys: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    rank: tl.tensor,
    least: tl.tensor,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANK: tl.constexpr,
):
    """Write the gradient of x for some rows and columns."""
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    narrow = tl.arange(0, RANK)
    inside, there = row < rows, column < columns
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for place in range(COUNT):
        given = tl.load(
            gradient + (place * rows + row[:, None]) * rank + narrow[None, :],
            mask=inside[:, None] & (narrow < rank)[None, :],
            other=0.0,
        )
        factor = tl.load(
            factors + (place * rank + narrow[:, None]).to(tl.int64) * columns + column[None, :],
            mask=(narrow < rank)[:, None] & there[None, :],
            other=0.0,
        )
        key = tl.load(keys + place * rows + row, mask=inside, other=0)
        total += tl.where(_kept(key, column, least), tl.dot(given, factor), 0.0)
    target = found + row[:, None] * columns + column[None, :]
    tl.store(target, total.to(found.dtype.element_ty), mask=inside[:, None] & there[None, :])


def launch(hidden: Tensor, keys: Tensor, factors: Tensor, found: Tensor, least: int) -> None:
    """Write all products to `found` (n, ..., r).

    Args:
        hidden: x, (rows, columns).
        keys: int32 (n, ...).
        factors: all A_i, (n, r, columns).
        found: where results go.
        least: the least hash whose value is kept.
    """
    hidden = hidden if hidden.stride(1) == 1 else hidden.contiguous()
    rows, columns = hidden.shape
    count, rank, _ = factors.shape
    at_once = _ROWS if count * triton.cdiv(rows, _ROWS) >= _FEW else _ROWS // 2
    sizes = rows, rank, hidden.stride(0), least
    forms = {"WIDTH": columns, "ROWS": at_once, "COLUMNS": _COLUMNS, "RANK": max(16, triton.next_power_of_2(rank))}
    tensors = hidden, factors.contiguous(), found, keys.contiguous()
    narrow_kernel[(count, triton.cdiv(rows, at_once))](*tensors, *sizes, **forms, num_warps=4, num_stages=3)


def launch_back(gradient: Tensor, keys: Tensor, factors: Tensor, found: Tensor, least: int) -> None:
    """Write the gradient of x to `found` (..., columns), given that of all h_i (n, ..., r)."""
    count, rank, columns = factors.shape
    rows = found.numel() // columns
    forms = {"COUNT": count, "ROWS": _ROWS, "COLUMNS": _WIDE, "RANK": max(16, triton.next_power_of_2(rank))}
    tensors = gradient, factors.contiguous(), found, keys.contiguous()
    grid = (triton.cdiv(columns, _WIDE), triton.cdiv(rows, _ROWS))
    back_kernel[grid](*tensors, rows, columns, rank, least, **forms, num_warps=4, num_stages=1)
