"""A Triton kernel for the gradients of a gated product, one pass over memory."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_ROWS, _COLUMNS = 4, 1024


@triton.jit
def gate_kernel(  # type: ignore[no-untyped-def]  # noqa: ANN201
    gradient: tl.tensor,
    gate: tl.tensor,
    up: tl.tensor,
    found: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    gradient_row: tl.tensor,
    gate_row: tl.tensor,
    up_row: tl.tensor,
    found_row: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write both gradients of some rows and columns."""
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (row < rows) & (column < columns)
    given = tl.load(gradient + row * gradient_row + column, mask=inside, other=0.0).to(tl.float32)
    gates = tl.load(gate + row * gate_row + column, mask=inside, other=0.0).to(tl.float32)
    ups = tl.load(up + row * up_row + column, mask=inside, other=0.0).to(tl.float32)
    share = 1.0 / (1.0 + tl.exp(-gates))
    kind = found.dtype.element_ty
    target = found + row * found_row + column
    tl.store(target, (given * ups * share * (1.0 + gates * (1.0 - share))).to(kind), mask=inside)
    tl.store(target + columns, (given * gates * share).to(kind), mask=inside)


def launch(gradient: Tensor, gate: Tensor, up: Tensor, found: Tensor) -> None:
    """Write the gradients of `gate` and `up` (N, n) side by side to `found` (N, 2 n)."""
    given = [one if one.stride(1) == 1 else one.contiguous() for one in (gradient, gate, up)]
    rows, columns = gradient.shape
    grid = (triton.cdiv(columns, _COLUMNS), triton.cdiv(rows, _ROWS))
    strides = [one.stride(0) for one in (*given, found)]
    gate_kernel[grid](*given, found, rows, columns, *strides, ROWS=_ROWS, COLUMNS=_COLUMNS)
