"""The product of several linear layers that read one tensor, with its gradients, alone and with what follows it.

    [y_1; y_2; ...] = [W_1; W_2; ...] x + [b_1; b_2; ...],   plus B_i h_i where layer i has an adapter

Written by a compiler, the gradients of several outputs are joined, or several products added up, by kernels that read
everything again. With what follows the product known, one operator writes them side by side as they arise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from striate.training.compile.gated import gate_back
from striate.training.compile.rotary import turn, turn_back

Sizes = tuple[int, ...]
# Outputs of each layer; which have an h_i and a B_i; whether weights and biases need gradients; and which outputs get
# memory of their own: what keeps one of them then does not keep all.
Form = tuple[Sizes, Sizes, bool, Sizes]
Gradients = tuple[Tensor | None, ...]


class Joined(torch.autograd.Function):
    """The outputs as they are: x is read once forward, and backward where that pays."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        form: Form,
        *factors: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return the outputs (..., sizes[i]).

        Args:
            ctx: keeps what the backward pass needs.
            hidden: x (..., inputs).
            weight: all W_i, (sum of sizes, inputs).
            bias: all b_i.
            form: of the product, see `Form`.
            factors: first every h_i (..., r), then every B_i (sizes[i], r).
        """
        parts = _outputs(hidden, weight, bias, form, factors)
        ctx.form, ctx.biased = form, bias is not None
        ctx.save_for_backward(weight, *([hidden] if form[2] else []), *factors)
        return tuple(_own(part) if index in form[3] else part for index, part in enumerate(parts))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        """Return the gradients of x, weights and biases where they train, and factors."""
        sizes, adapted, trained, _ = ctx.form
        if trained or len(sizes) > 2:
            found = _gradients(ctx, ctx.saved_tensors, torch.cat(gradients, -1), 0)
        else:
            weight, *factors = ctx.saved_tensors
            # Two outputs are mostly a gated product's: joining their gradients would compute both twice.
            products = [part @ rows for part, rows in zip(gradients, weight.split(sizes), strict=True)]
            towards = products[0] if len(products) == 1 else products[0] + products[1]
            found = towards, None, None, *_of_factors(gradients, adapted, factors)
        return *found[:3], None, *found[3:]


class Turned(torch.autograd.Function):
    """Queries and keys rotated (`rotary`), and values."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        form: Form,
        cos: Tensor,
        sin: Tensor,
        *factors: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return the outputs; `cos` and `sin` are those of the positions (B or 1, T, head size)."""
        query, key, value = _outputs(hidden, weight, bias, form, factors)
        query, key = turn(query, key, cos, sin)
        ctx.form, ctx.biased = form, bias is not None
        ctx.save_for_backward(weight, cos, sin, *([hidden] if form[2] else []), *factors)
        return query, key, _own(value) if 2 in form[3] else value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        """Return the gradients as `Joined` does."""
        saved = ctx.saved_tensors
        found = _gradients(ctx, saved, turn_back(*gradients, *saved[1:3]), 2)
        return *found[:3], None, None, None, *found[3:]


class Gated(torch.autograd.Function):
    """silu(y_1) y_2."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        form: Form,
        *factors: Tensor,
    ) -> Tensor:
        """Return the gated output (..., sizes[0])."""
        gate, up = _outputs(hidden, weight, bias, form, factors)
        ctx.form, ctx.biased = form, bias is not None
        ctx.save_for_backward(weight, gate, up, *([hidden] if form[2] else []), *factors)
        return silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        """Return the gradients as `Joined` does."""
        saved = ctx.saved_tensors
        found = _gradients(ctx, saved, gate_back(gradients[0], *saved[1:3]), 2)
        return *found[:3], None, *found[3:]


def _outputs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, form: Form, factors: Sequence[Tensor]
) -> list[Tensor]:
    """Return W_i x + b_i, plus B_i h_i where there is an adapter."""
    sizes, adapted, *_ = form
    parts = list(linear(hidden, weight, bias).split(sizes, -1))
    for index, narrow, wide in zip(adapted, *_halves(factors), strict=True):
        parts[index] = _cast(parts[index] + linear(narrow, wide), parts[index].dtype)
    return parts


def _gradients(ctx: Any, saved: Sequence[Tensor], joined: Tensor, kept: int) -> Gradients:
    """Return the gradients of x, weights, biases and factors, given that of all outputs side by side.

    Args:
        ctx: with `form` and `biased`.
        saved: the weight, `kept` more tensors, x where the weight trains, and factors; read from `ctx` once, since a
            recomputed layer hands them out once.
        joined: that gradient.
        kept: how many tensors lie between weight and x.
    """
    sizes, adapted, trained, _ = ctx.form
    begin = 1 + kept
    weights = biases = None
    if trained:
        weights = _rows(joined).t() @ _rows(saved[begin])
        biases = _rows(joined).sum(0) if ctx.biased else None
    factors = saved[begin + 1 if trained else begin :]
    return joined @ saved[0], weights, biases, *_of_factors(joined.split(sizes, -1), adapted, factors)


def _of_factors(parts: Sequence[Tensor], adapted: Sizes, factors: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of every h_i, then of every B_i."""
    narrow_gradients, wide_gradients = [], []
    for index, narrow, wide in zip(adapted, *_halves(factors), strict=True):
        part = _cast(parts[index], narrow.dtype)
        narrow_gradients.append(part @ wide)
        wide_gradients.append(_rows(part).t() @ _rows(narrow))
    return [*narrow_gradients, *wide_gradients]


def _halves(factors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Return the first and the second half."""
    middle = len(factors) // 2
    return factors[:middle], factors[middle:]


def _own(tensor: Tensor) -> Tensor:
    """Return a copy: `contiguous` gives an alias of a single token's values, with the same fate as below."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `tensor` in `dtype`."""
    # A cast that changes nothing gives an alias, with which PyTorch 2.11's compiler loses gradients.
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _rows(tensor: Tensor) -> Tensor:
    """Return a tensor (..., n) as a matrix."""
    return tensor.reshape(-1, tensor.shape[-1])
