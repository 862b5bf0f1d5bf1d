"""Compare a layer's compiled function with the layer itself, on the batch at hand, before it is trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from striate.models.interventions.eval_mode import evaluating
from striate.training.compile.layer_function import LayerFunction
from striate.training.quantization.fp8_linear import Fp8Linear

# Largest ||a - b|| / ||b|| of what a layer adds to the residual stream, and of gradients, by number format.
_OUTPUT = {torch.bfloat16: 0.05, torch.float16: 0.01, torch.float32: 1e-3, torch.float64: 1e-6}
_GRADIENT = {torch.bfloat16: 0.1, torch.float16: 0.05, torch.float32: 1e-2, torch.float64: 1e-5}
# How much larger differences may be with matrices in 8-bit floats: rounding in bfloat16 moves some to the next value.
_COARSE = 3.0


class DifferenceError(Exception):
    """The function can't be had, or gives something else than the layer; the text says which."""


def compare(
    function: LayerFunction,
    layer: nn.Module,
    original: Callable[..., Any],
    tensors: Mapping[str, torch.Tensor],
    args: Any,
    kwargs: Mapping[str, Any],
    more: Mapping[str, Any],
) -> None:
    """Return if `function` does on these inputs what `layer` does; `more` is what only the function is handed.

    Three comparisons: with dropout off, the function's operations one by one against the layer's own; with dropout,
    compiled against one by one; and at the first use of the function, the gradients of those two.

    Raises:
        DifferenceError: in words, what differs or why it can't be compiled.
    """
    args, kwargs = _detached(args), {name: _detached(value) for name, value in kwargs.items()}
    device = (args[0] if args else kwargs["hidden_states"]).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        with torch.no_grad(), evaluating(layer), evaluating(function.template):
            expected = _first(original(*args, **kwargs))
            kwargs = function.inputs(kwargs, more)
            expected = function.select(expected, kwargs)
            found = _first(tried(function.plain, tensors, None, args, kwargs))
        stream = _stream(function, args, kwargs, expected)
        _check("without the compiler", found, expected, _limits(_OUTPUT, function), stream)
        del expected, found
        if other_dropout(function.template):
            return
        keys = function.keys(args[0] if args else kwargs["hidden_states"])
        _compare_compiled(function, tensors, keys, args, kwargs)


def other_dropout(module: nn.Module) -> bool:
    """Return whether something other than LoRA drops values: two runs can't be compared then."""
    return any(
        one.training and (getattr(one, "attention_dropout", 0.0) or (isinstance(one, nn.Dropout) and one.p))
        for one in module.modules()
        if isinstance(getattr(one, "attention_dropout", 0.0), float | int)
    )


def _compare_compiled(
    function: LayerFunction, tensors: Mapping[str, torch.Tensor], keys: torch.Tensor | None, args: Any, kwargs: Any
) -> None:
    """Compare compiled with one by one; gradients too where the function has not been used before."""
    output, inputs = tried(_run, function, tensors, keys, args, kwargs)
    gradients = [] if function.checked else tried(_gradients, output, inputs)
    expected, inputs = _run(function.plain, tensors, keys, args, kwargs)
    _check("compiled", output, expected, _limits(_OUTPUT, function), _stream(function, args, kwargs, expected))
    for found, wanted in zip(gradients, _gradients(expected, inputs) if gradients else [], strict=True):
        if found is not None and wanted is not None:
            _check("compiled, in its gradients", found, wanted, _limits(_GRADIENT, function))


def _limits(limits: Mapping[torch.dtype, float], function: LayerFunction) -> dict[torch.dtype, float]:
    """Return how far two results of `function` may lie apart."""
    coarse = any(isinstance(module, Fp8Linear) for module in function.template.modules())
    return {dtype: limit * (_COARSE if coarse else 1.0) for dtype, limit in limits.items()}


def tried(step: Callable[..., Any], *args: Any) -> Any:
    """Return what `step` gives; whatever a compiler does not like about a family is a reason not to use it there."""
    try:
        return step(*args)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise DifferenceError(f"it can't be compiled: {_short(error)}") from error


def _run(run: Callable[..., Any], tensors: Mapping[str, torch.Tensor], keys: Any, args: Any, kwargs: Any) -> Any:
    """Return the output, and what its gradients go to: the parameters that train, and the input where it needs one."""
    with torch.enable_grad():
        output = _first(run(tensors, keys, args, kwargs))
    given = [args[0] if args else kwargs["hidden_states"], *tensors.values()]
    return output, [tensor for tensor in given if tensor.requires_grad]


def _gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor | None]:
    """Return the gradients of a weighted sum of the output."""
    if not (output.requires_grad and inputs):
        return []
    # The same pseudo-random weights for both.
    steps = torch.arange(output.numel(), device=output.device, dtype=torch.float32).view_as(output)
    return list(torch.autograd.grad(output, inputs, torch.sin(steps).to(output.dtype), allow_unused=True))


def _check(
    which: str,
    found: torch.Tensor,
    expected: torch.Tensor,
    limits: Mapping[torch.dtype, float],
    stream: torch.Tensor | None = None,
) -> None:
    """Raise if two tensors differ by more than rounding; of outputs, what was added to `stream` counts."""
    if found.shape != expected.shape:
        raise DifferenceError(f"{which} it gives {tuple(found.shape)}, not {tuple(expected.shape)}")
    found, expected = found.detach(), expected.detach()
    coarse = torch.is_autocast_enabled(expected.device.type)
    dtype = torch.get_autocast_dtype(expected.device.type) if coarse else expected.dtype
    difference = float((found.double() - expected.double()).norm())
    size = float((expected.double() - (0.0 if stream is None else stream.double())).norm())
    # The sum itself is rounded too.
    rounding = torch.finfo(dtype).eps * float(expected.double().norm())
    if not difference <= limits[dtype] * size + rounding:
        raise DifferenceError(f"{which} it differs from the layer by {difference:.2g} of {size:.2g}")


def _stream(function: LayerFunction, args: Any, kwargs: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor | None:
    """Return the layer's input where its output is of the same form."""
    hidden = (args[0] if args else kwargs["hidden_states"]).detach()
    chosen = function.select(hidden, kwargs) if hidden.dim() == 3 else hidden
    return chosen if chosen.shape == output.shape else None


def _detached(value: Any) -> Any:
    """Return tensors cut from the graph, leaves that need a gradient where the originals did."""
    if isinstance(value, torch.Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    if isinstance(value, tuple | list):
        return type(value)(_detached(part) for part in value)
    return value


def _first(output: Any) -> torch.Tensor:
    """Return the hidden states of what a layer gives."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple | list) else output
    return hidden


def _short(error: Exception) -> str:
    """Return the first two lines of an error, cut to a line's length: a compiler's own errors name the cause second."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2]) or 'no text'}"[:240]
