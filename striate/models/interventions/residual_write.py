"""Finds the linear module by which a decoder layer adds to the residual stream, and proves that it does no more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from striate.errors import ModelError
from striate.models.interventions.layer_replay import LayerCall

# What rounding explains, relative to a token's state.
_CLOSE, _CLOSE_IN_HALF = 1e-3, 5e-2
_NORM = "norm"


@dataclass(frozen=True)
class ResidualWrite:
    """A linear module of a decoder layer, whose output times `gain` is one summand of what leaves the layer.

    Attributes:
        name: within the layer.
        module: an `nn.Linear`, or a `Conv1D`, whose weight lies the other way round.
        gain: a constant of the family, 1 for most.
    """

    name: str
    module: Any
    gain: float

    @property
    def weight(self) -> Tensor:
        """The weight, output width by input width: a view, so that writing to it changes the model."""
        return self.module.weight.data.T if isinstance(self.module, Conv1D) else self.module.weight.data


@dataclass
class _Linear:
    """One linear module's last call within a layer: input (N, F)."""

    name: str
    module: Any
    inputs: Tensor
    norm_behind: str = ""


def find_write(layer: nn.Module, call: LayerCall, places_N: Tensor, where: str) -> ResidualWrite:
    """Return the last linear module of `layer` whose output enters the residual stream as it is.

    That is the down projection of the MLP in most families. It is found by the order in which modules run, and proved:
    another weight E must move the layer's output by `gain * a E'` at every token, a being the module's input.

    Args:
        layer: a decoder layer.
        call: one call of it.
        places_N: tokens that count, numbered through the batch, row by row.
        where: what errors call the layer.

    Raises:
        ModelError: there is no such module, with the reason.
    """
    before_ND = _run(layer, call)[places_N].float()
    linears = _linears(layer, call)
    if not linears:
        raise _unfit(where, "no linear module in it sees every token", layer)
    for linear in reversed(linears):
        gain = _gain(layer, call, linear, before_ND, places_N)
        if gain is not None:
            return ResidualWrite(linear.name, linear.module, gain)
    last = linears[-1]
    behind = f"{last.norm_behind} normalises what {last.name} gives" if last.norm_behind else ""
    raise _unfit(where, behind or f"what leaves it is no sum of the output of {last.name} and a rest", layer)


def _linears(layer: nn.Module, call: LayerCall) -> list[_Linear]:
    """Return linear modules as wide as the state that see every token, in the order in which they ran."""
    width, tokens = call.x_out.shape[-1], call.x_out.shape[:2].numel()
    ran: dict[str, _Linear] = {}

    def watch(name: str, module: Any, args: tuple[Any, ...], output: Any) -> None:
        if _NORM in type(module).__name__.lower():
            for linear in ran.values():
                linear.norm_behind = linear.norm_behind or name
        elif is_linear(module) and args and output.shape[-1] == width and output.numel() == tokens * width:
            ran.pop(name, None)
            ran[name] = _Linear(name, module, args[0].reshape(tokens, -1))

    with ExitStack() as hooks:
        for name, module in layer.named_modules():
            hook = _named(watch, name)
            hooks.callback(module.register_forward_hook(hook).remove)
        _run(layer, call)
    return list(ran.values())


def _named(watch: Any, name: str) -> Any:
    return lambda module, args, output: watch(name, module, args, output)


def is_linear(module: Any) -> bool:
    """Return whether it is a plain linear module, with weights that are numbers, not packed ones."""
    weight = getattr(module, "weight", None)
    if not isinstance(module, nn.Linear | Conv1D) or not isinstance(weight, Tensor) or weight.ndim != 2:
        return False
    return weight.is_floating_point() and weight.dtype.itemsize >= 2


def _gain(layer: nn.Module, call: LayerCall, linear: _Linear, before_ND: Tensor, places_N: Tensor) -> float | None:
    """Return by how much the layer's output follows the module's, or None where it follows in another way."""
    weight = linear.module.weight
    draw = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(weight.device)
    inputs_NF = linear.inputs[places_N].float()
    # As large as what is there at most tokens; a few have states many times longer.
    width = before_ND.shape[-1] ** 0.5
    size = before_ND.norm(dim=-1).median() / width / inputs_NF.norm(dim=-1).median().clamp_min(1e-30)
    changed = (weight.data.float() + draw * size).to(weight.dtype)
    change = changed.float() - weight.data.float()
    with _weight(linear.module, changed):
        moved_ND = _run(layer, call)[places_N].float() - before_ND
    expected_ND = inputs_NF @ (change if isinstance(linear.module, Conv1D) else change.T)
    gains_N = (moved_ND * expected_ND).sum(-1) / expected_ND.square().sum(-1).clamp_min(1e-30)
    gain = float(gains_N.median())
    scale_N = expected_ND.norm(dim=-1) + before_ND.norm(dim=-1)
    off = float(((moved_ND - gain * expected_ND).norm(dim=-1) / scale_N.clamp_min(1e-30)).max())
    close = _CLOSE if call.x_out.dtype.itemsize >= 4 else _CLOSE_IN_HALF
    if not off <= close or abs(gain) <= 2 * close:
        return None
    return 1.0 if abs(gain - 1) <= close else gain


@contextmanager
def _weight(module: Any, weight: Tensor) -> Iterator[None]:
    former = module.weight.data
    module.weight.data = weight
    try:
        yield
    finally:
        module.weight.data = former


def _run(layer: nn.Module, call: LayerCall) -> Tensor:
    """Return what the layer makes of the same call, shape (N, D) for all tokens of the batch."""
    return LayerCall((), {}, layer(*call.args, **call.kwargs)).x_out.flatten(0, 1)


def _unfit(where: str, reason: str, layer: nn.Module) -> ModelError:
    routed = any("expert" in name for name, _ in layer.named_modules())
    reason = "its MLP routes tokens to experts" if routed else reason
    return ModelError(
        f"{where} can't be compensated for the layers behind it: {reason}",
        "a layer that adds the output of its MLP's last linear module to the state as it is",
        "set prune.compensate to none, and heal instead",
    )
