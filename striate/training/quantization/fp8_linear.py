"""Frozen matrices in 8-bit floats while others train: products at twice the rate, with about 4% error each.

Each row of the activations and each output of the matrix has a scale of its own, its largest magnitude over 448, the
largest number of the format e4m3 (Micikevicius et al., arXiv 2209.05433). The gradient of the input is a product of the
same kind with the matrix scaled by its inputs, so a matrix is held twice: as many bytes as in bfloat16. The weights
themselves wait on the CPU meanwhile and come back bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from striate.artifacts import Region
from striate.models.structure.anatomy import decoder_layers
from striate.training.quantization.module_swap import swapped

FORMAT = torch.float8_e4m3fn
LARGEST = torch.finfo(FORMAT).max
# Compute capability of the first cards whose matrix units take 8-bit floats with a scale a row.
FIRST_CARD = (9, 0)
# The product wants widths that are multiples of this.
WIDTH = 16
Say = Callable[[str], None]


def quantise_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return `values` (M, K) as 8-bit floats, and the scale of each row, float32 (M, 1): values = quantised x scale."""
    wide = values.float()
    scale = wide.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny * LARGEST) / LARGEST
    return (wide / scale).clamp(-LARGEST, LARGEST).to(FORMAT), scale


class _Fp8Product(torch.autograd.Function):
    """y = x W^T for a frozen W, forward and backward in 8-bit floats."""

    @staticmethod
    def forward(
        ctx: Any, x_MK: Tensor, weight_NK: Tensor, scale_N: Tensor, turned_KN: Tensor, back_K: Tensor
    ) -> Tensor:
        """Return y (M, N) in bfloat16."""
        ctx.save_for_backward(turned_KN, back_K)
        return _scaled(x_MK, weight_NK, scale_N)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of x, and none of the rest."""
        turned_KN, back_K = ctx.saved_tensors
        return _scaled(gradients[0], turned_KN, back_K), None, None, None, None


def _scaled(x_MK: Tensor, weight_NK: Tensor, scale_N: Tensor) -> Tensor:
    """Return x W^T (M, N) in bfloat16, x quantised here and W before."""
    quantised, scale = quantise_rows(x_MK)
    if x_MK.device.type == "cpu":
        # Not every PyTorch has this product with a scale a row on the CPU; autocast leaves float64 alone.
        return (quantised.double() @ weight_NK.double().t() * scale * scale_N).to(torch.bfloat16)
    return torch._scaled_mm(
        quantised,
        weight_NK.t(),
        scale_a=scale,
        scale_b=scale_N[None],
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


class Fp8Linear(nn.Module):
    """A frozen linear layer in 8-bit floats, for bfloat16 activations."""

    weight_fp8: Tensor
    scale: Tensor
    turned_fp8: Tensor
    turned_scale: Tensor

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None) -> None:
        """Quantise a weight (outputs, inputs), once by its rows and once by its columns."""
        super().__init__()
        self.out_features, self.in_features = weight_NK.shape
        for name, matrix in (("weight_fp8", weight_NK), ("turned_fp8", weight_NK.t())):
            quantised, scale = quantise_rows(matrix)
            self.register_buffer(name, quantised.contiguous(), persistent=False)
            self.register_buffer("scale" if name == "weight_fp8" else "turned_scale", scale[:, 0], persistent=False)
        self.bias = None if bias_N is None else nn.Parameter(bias_N, requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the layer's output for `hidden` (..., inputs), in bfloat16."""
        rows = hidden.reshape(-1, self.in_features)
        result = _Fp8Product.apply(rows, self.weight_fp8, self.scale, self.turned_fp8, self.turned_scale)
        result = result.view(*hidden.shape[:-1], self.out_features)
        return result if self.bias is None else result + self.bias.to(result.dtype)


def why_not(model: nn.Module, region: Region) -> str:
    """Return why the matrices outside `region` can't be in 8-bit floats here, or nothing."""
    if not region.outside:
        return "no decoder layer lies outside the region"
    # Layers that train may hold float32 masters, so only those outside say what the model computes in.
    weight = next(decoder_layers(model)[region.outside[0]].parameters())
    if weight.dtype is not torch.bfloat16:
        return f"the model computes in {weight.dtype}, not in bfloat16"
    if weight.device.type == "cuda" and torch.cuda.get_device_capability(weight.device) < FIRST_CARD:
        return f"{torch.cuda.get_device_name(weight.device)} has no 8-bit floating point products by row"
    return ""


@contextmanager
def frozen_in_fp8(model: nn.Module, region: Region, say: Say = lambda line: None) -> Iterator[int]:
    """Hold the linear layers of all decoder layers outside `region` in 8-bit floats for a while; yield how many.

    Layers that can't be (a weight that trains, an adapter, widths that are no multiple of 16) stay, and are counted in
    one line to `say`. Where the machine can't do it at all, nothing changes and `say` is told why.
    """
    if reason := why_not(model, region):
        say(f"frozen layers stay as they are: {reason}")
        yield 0
        return
    with swapped(
        model,
        region,
        Fp8Linear,
        lambda one: one.in_features % WIDTH == 0 and one.out_features % WIDTH == 0,
    ) as (count, left):
        if left:
            say(f"{left} linear layers outside the region stay as they are: they train, or their widths do not fit")
        yield count
