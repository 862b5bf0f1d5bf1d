"""The gradients of a gated product z = silu(g) u, side by side, and which MLPs are of that form.

    dL/dg = z' u s (1 + g (1 - s)),   dL/du = z' g s,   s = 1 / (1 + exp(-g)),   z' = dL/dz

(SwiGLU: Shazeer, arXiv 2002.05202.)
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from striate.training.compile.kernels import runs_triton
from striate.training.compile.lora_dropout import owner_of

_PARTS = ["gate_proj", "up_proj"]
_CHILDREN = {*_PARTS, "down_proj", "act_fn"}


@torch.library.custom_op("striate::gate_back", mutates_args=())
def gate_back(gradient: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """Return the gradients of g and u side by side, (..., 2 n).

    Args:
        gradient: z' (..., n).
        gate: g (..., n); its rows may be part of longer ones.
        up: u (..., n), likewise.
    """
    found = gradient.new_empty((*gradient.shape[:-1], 2 * gradient.shape[-1]))
    if runs_triton(gradient):
        from striate.training.compile.gated_kernel import launch

        launch(*(one.reshape(-1, one.shape[-1]) for one in (gradient, gate, up, found)))
    else:
        found.copy_(_plain(gradient, gate, up))
    return found


@gate_back.register_fake
def _(gradient: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """Return what the result looks like."""
    return gradient.new_empty((*gradient.shape[:-1], 2 * gradient.shape[-1]))


def _plain(*tensors: Tensor) -> Tensor:
    """Return the same by PyTorch's own operators, halves in float32."""
    gradient, gate, up = (one if one.element_size() > 2 else one.float() for one in tensors)
    share = torch.sigmoid(gate)
    return torch.cat([gradient * up * share * (1 + gate * (1 - share)), gradient * gate * share], -1)


def gating(layer: nn.Module, names: Sequence[str]) -> Any:
    """Return the module that makes silu(gate) up of the linear layers `names` and projects it down, or None.

    Args:
        layer: a decoder layer.
        names: paths in it of linear layers, in the order of their calls.
    """
    mlp: Any = owner_of(layer, names, _PARTS)
    if mlp is None:
        return None
    code = inspect.unwrap(type(mlp).forward).__code__
    alike = {name for name, _ in mlp.named_children()} == _CHILDREN and set(code.co_names) == _CHILDREN
    silu = isinstance(getattr(mlp, "act_fn", None), nn.SiLU | SiLUActivation)
    return mlp if alike and silu and code.co_argcount == 2 else None


def gate(mlp: Any, product: Any) -> None:
    """Let an MLP of that form get its gated product from `product`, by its method `gated`."""
    kind = type(mlp)
    mlp.product = product
    mlp.__class__ = type(f"Gated{kind.__name__}", (kind,), {"forward": _forward})


def _forward(mlp: Any, hidden: Tensor) -> Tensor:
    """Return the output of the MLP."""
    found: Tensor = mlp.down_proj(mlp.product.gated(hidden))
    return found
