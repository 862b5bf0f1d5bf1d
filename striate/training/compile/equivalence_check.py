"""Compares a layer's compiled forward method with the plain one, on the batch at hand, before it is trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from striate.training.compile.lora_dropout import keyed_dropouts
from striate.training.quantization.fp8_linear import Fp8Linear

# Largest ||a - b|| / ||b|| of what a layer adds to the residual stream, and of gradients, by number format.
_OUTPUT = {torch.bfloat16: 0.05, torch.float16: 0.01, torch.float32: 1e-3, torch.float64: 1e-6}
_GRADIENT = {torch.bfloat16: 0.1, torch.float16: 0.05, torch.float32: 1e-2, torch.float64: 1e-5}
# How much larger differences may be with matrices in 8-bit floats: rounding in bfloat16 moves some to the next value.
_COARSE = 3.0
Call = Callable[..., Any]


def difference(layer: nn.Module, compiled: Call, plain: Call, args: Any, kwargs: Mapping[str, Any]) -> str:
    """Return how `compiled` differs from `plain` on these inputs, with the same dropout, or why it fails; or nothing.

    Compared are the output, and the gradients of what trains and of the input. Sharded weights (FSDP2, ZeRO-3) are
    whole while their layer runs, and what exchanges their gradients takes no note of these.

    Args:
        layer: the layer, in the mode in which it trains.
        compiled: its compiled forward method.
        plain: its forward method.
        args: of the call.
        kwargs: of the call.
    """
    hidden = args[0] if args else kwargs["hidden_states"]
    generators = [hidden.device] if hidden.device.type == "cuda" else []
    with torch.random.fork_rng(devices=generators):
        expected, expected_gradients = _run(plain, layer, args, kwargs)
    try:
        with torch.random.fork_rng(devices=generators):
            output, gradients = _run(compiled, layer, args, kwargs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # Whatever a compiler does not like about a family is a reason not to use it there.
        return f"it can't be compiled: {_short(error)}"
    if _drops_at_random(layer):
        # A compiler's random numbers are others: two runs can't be compared.
        return ""
    if len(gradients) != len(expected_gradients):
        return "compiled, it gives gradients to other tensors"
    coarse = _COARSE if any(isinstance(module, Fp8Linear) for module in layer.modules()) else 1.0
    stream = hidden.detach() if hidden.shape == expected.shape else None
    reasons = [_distance("compiled", output, expected, _OUTPUT, coarse, stream)]
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        if (gradient is None) is not (wanted is None):
            reasons.append("compiled, it gives a gradient where the layer gives none, or none where it gives one")
        elif gradient is not None and wanted is not None:
            reasons.append(_distance("compiled, in its gradients,", gradient, wanted, _GRADIENT, coarse))
    return next(filter(None, reasons), "")


def _run(call: Call, layer: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> tuple[Tensor, list[Tensor | None]]:
    """Return the output, and the gradients of a weighted sum of it for what trains and for the input."""
    args, kwargs = _detached(args), {name: _detached(value) for name, value in kwargs.items()}
    output = call(*args, **kwargs)
    output = output[0] if isinstance(output, tuple | list) else output
    inputs = [tensor for tensor in (*args, *kwargs.values(), *layer.parameters()) if _needs_gradient(tensor)]
    if not (output.requires_grad and inputs):
        return output.detach(), []
    # The same pseudo-random weights for both.
    steps = torch.arange(output.numel(), device=output.device, dtype=torch.float32).view_as(output)
    gradients = torch.autograd.grad(output, inputs, torch.sin(steps).to(output.dtype), allow_unused=True)
    return output.detach(), list(gradients)


def _drops_at_random(layer: nn.Module) -> bool:
    """Return whether something other than random keys drops values."""
    if any(module.unkeyed for module in keyed_dropouts(layer)):
        return True
    return any(
        module.training and ((isinstance(module, nn.Dropout) and module.p) or getattr(module, "attention_dropout", 0.0))
        for module in layer.modules()
        if isinstance(getattr(module, "attention_dropout", 0.0), float | int)
    )


def _needs_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _distance(
    which: str,
    actual: Tensor,
    expected: Tensor,
    limits: Mapping[torch.dtype, float],
    coarse: float,
    stream: Tensor | None = None,
) -> str:
    """Return how far tensors lie apart if it is more than rounding; of outputs, what was added to `stream` counts."""
    if actual.shape != expected.shape:
        return f"{which} it gives {tuple(actual.shape)}, not {tuple(expected.shape)}"
    device = expected.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else expected.dtype
    apart = float((actual.double() - expected.double()).norm())
    size = float((expected.double() - (0.0 if stream is None else stream.double())).norm())
    # The sum itself is rounded too.
    rounding = torch.finfo(dtype).eps * float(expected.double().norm())
    within = apart <= limits[dtype] * coarse * size + rounding
    return "" if within else f"{which} it differs from the layer by {apart:.2g} of {size:.2g}"


def _detached(value: Any) -> Any:
    """Return tensors cut from the graph, leaves that need a gradient where the originals did."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    if isinstance(value, tuple | list):
        return type(value)(_detached(part) for part in value)
    return value


def _short(error: Exception) -> str:
    """Return the first two lines of an error, cut to a line's length: a compiler's own errors name the cause second."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2]) or 'no text'}"[:240]
