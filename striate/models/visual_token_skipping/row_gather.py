"""Row gather whose backward pass is a gather too: no atomic adds, so it is deterministic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def gather_rows(values_MD: Tensor, rows_N: Tensor, back_CM: Tensor) -> Tensor:
    """Return the rows `rows_N` of `values_MD`, (N, D), and zeros where a row is -1.

    Args:
        values_MD: what to take from.
        rows_N: which row goes to each place.
        back_CM: the places that each row went to, -1 where fewer than C: what `rows_N` says, the other way round.
    """
    result: Tensor = _GatherRows.apply(values_MD, rows_N, back_CM)
    return result


def put_rows(values_MD: Tensor, new_ND: Tensor, rows_N: Tensor, back_M: Tensor) -> Tensor:
    """Return `values_MD` with `new_ND` in its rows `rows_N`; rows of `new_ND` that belong to -1 are dropped.

    Args:
        values_MD: what most rows are of.
        new_ND: the others.
        rows_N: which row each is.
        back_M: for each row of the result its place in `new_ND`, or -1.
    """
    return torch.where((back_M >= 0)[:, None], gather_rows(new_ND, back_M, rows_N[None]), values_MD)


class _GatherRows(torch.autograd.Function):
    """Rows by index, whose gradient is rows by the inverse index."""

    @staticmethod
    def forward(ctx: Any, values_MD: Tensor, rows_N: Tensor, back_CM: Tensor) -> Tensor:
        """Return the rows."""
        ctx.save_for_backward(back_CM)
        return _rows(values_MD, rows_N)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of what the rows were taken from."""
        (back_CM,) = ctx.saved_tensors
        total = _rows(gradients[0], back_CM[0])
        for copy in range(1, back_CM.shape[0]):
            total = total + _rows(gradients[0], back_CM[copy])
        return total, None, None


def _rows(values_MD: Tensor, rows_N: Tensor) -> Tensor:
    """Return the rows, zeros for -1."""
    return torch.where((rows_N >= 0)[:, None], values_MD[rows_N.clamp_min(0)], 0.0)
