"""Frozen matrices in 8-bit integers while others train: half of their memory, the same products.

Each output of a matrix has a scale, its largest magnitude over 127, and its weights are rounded to whole multiples of
it: none moves by more than half a step. Before a product, forward and for the gradient of the input, the matrix is made
again in the model's number format. So it works with every format and on every device, and costs three bytes of traffic
a weight and pass. The weights themselves wait on the CPU meanwhile and come back bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from striate.artifacts import Region
from striate.training.quantization.module_swap import swapped

# -128 is left out, so that the format is symmetric.
LARGEST = 127
Say = Callable[[str], None]


def quantise_outputs(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Return a matrix as 8-bit integers (N, K), and the scale of each output, float32 (N): weight = integer x scale."""
    wide = weight_NK.float()
    scale_N = wide.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny * LARGEST) / LARGEST
    return (wide / scale_N[:, None]).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale_N


def dequantise(weight_NK: Tensor, scale_N: Tensor, dtype: torch.dtype) -> Tensor:
    """Return integers x scales in the format `dtype`, which rounds once more where it is a half-precision one."""
    return (weight_NK.float() * scale_N[:, None]).to(dtype)


class _Int8Product(torch.autograd.Function):
    """y = x W^T for a frozen W, which is made from its integers once for each pass and not kept between them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_NK: Tensor, scale_N: Tensor, dtype: torch.dtype) -> Tensor:
        """Return y (..., N)."""
        ctx.save_for_backward(weight_NK, scale_N)
        ctx.dtype, ctx.given = dtype, x.dtype
        return linear(x.to(dtype), dequantise(weight_NK, scale_N, dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of x, and none of the rest."""
        weight_NK, scale_N = ctx.saved_tensors
        gradient = gradients[0].to(ctx.dtype) @ dequantise(weight_NK, scale_N, ctx.dtype)
        return gradient.to(ctx.given), None, None, None


class Int8Linear(nn.Module):
    """A frozen linear layer whose matrix is kept in 8-bit integers."""

    weight_int8: Tensor
    scale: Tensor

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None) -> None:
        """Quantise a weight (outputs, inputs); products run in its number format."""
        super().__init__()
        self.out_features, self.in_features = weight_NK.shape
        self.dtype = weight_NK.dtype
        integers, scale = quantise_outputs(weight_NK)
        self.register_buffer("weight_int8", integers, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.bias = None if bias_N is None else nn.Parameter(bias_N, requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the layer's output for `hidden` (..., inputs)."""
        if torch.compiler.is_compiling():
            # Else the compiler keeps the matrix from the forward pass for the backward pass.
            how: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
            weight = checkpoint(dequantise, self.weight_int8, self.scale, self.dtype, **how)
            result = linear(hidden.to(self.dtype), weight)
        else:
            result = _Int8Product.apply(hidden, self.weight_int8, self.scale, self.dtype)
        return result if self.bias is None else result + self.bias.to(result.dtype)


@contextmanager
def frozen_in_int8(model: nn.Module, region: Region, say: Say = lambda line: None) -> Iterator[int]:
    """Hold the linear layers of all decoder layers outside `region` in 8-bit integers for a while; yield how many.

    Layers that train or are no floating-point numbers stay, and are counted in one line to `say`.
    """
    with swapped(model, region, Int8Linear, lambda one: one.weight.is_floating_point()) as (count, left):
        if left:
            say(f"{left} linear layers outside the region stay as they are: they train")
        yield count
