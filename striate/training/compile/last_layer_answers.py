"""The last decoder layer at answer positions only: what it gives elsewhere is never read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from striate.training.compile.layer_function import LayerFunction

# A layer of this form adds attention of one norm, then an MLP of another norm, to the residual stream.
_CHILDREN = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
OUTPUT = "o_proj"
_current: list[torch.Tensor | None] = [None]


@contextmanager
def answering(rows_N: torch.Tensor, columns_N: torch.Tensor, length: int) -> Iterator[None]:
    """Say for a while which positions predict an answer, in a batch of samples of `length` tokens."""
    outer, _current[0] = _current[0], rows_N * length + columns_N
    try:
        yield
    finally:
        _current[0] = outer


def answer_places() -> torch.Tensor | None:
    """Return the places (N,) of positions that predict an answer, in the batch as one row, or None if unknown."""
    return _current[0]


def has_known_form(layer: nn.Module) -> bool:
    """Return whether a layer looks like attention and MLP, each behind a norm; that it is so, a comparison shows."""
    names = {name for name, _ in layer.named_children()}
    return names == _CHILDREN and hasattr(layer.self_attn, OUTPUT)


class AnswerFunction(LayerFunction):
    """A layer whose attention runs everywhere, and whose output projection and MLP at chosen places only.

    Keys and values of all positions are needed by attention at the chosen ones; nothing reads the rest of the layer's
    output, so leaving it out changes neither the loss nor any gradient. Output (1, N, D).
    """

    def __init__(self, layer: nn.Module, backend: str = "inductor", options: Mapping[str, Any] | None = None) -> None:
        """Take the form of `layer`, which must have the known one; it keeps little as it is."""
        super().__init__(layer, backend, options)
        put_off(self.template.get_submodule(f"self_attn.{OUTPUT}"))

    def select(self, output: torch.Tensor, kwargs: Mapping[str, Any]) -> torch.Tensor:
        """Return the places of a whole layer's output that the function gives."""
        return output.flatten(0, 1)[kwargs["places"]].unsqueeze(0)

    def _bare(self) -> Callable[..., Any]:
        """Return the function to compile."""
        template, late = _AtPlaces(self.template), [name for name in self._keys if _is_late(name)]

        def run(tensors: dict[str, torch.Tensor], args: Any, kwargs: Mapping[str, Any]) -> Any:
            places = kwargs["places"]
            chosen = {name: tensors[name].flatten()[places].unsqueeze(0) for name in late if tensors[name].dim() > 1}
            renamed = {f"layer.{name}": tensor for name, tensor in {**tensors, **chosen}.items()}
            return functional_call(template, renamed, args, dict(kwargs), strict=True)

        return run


class _AtPlaces(nn.Module):
    """A layer's forward pass with everything behind attention at chosen places."""

    def __init__(self, layer: nn.Module) -> None:
        """Take the layer, whose output projection has been put off."""
        super().__init__()
        self.layer: Any = layer

    def forward(self, hidden: torch.Tensor, places: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return (1, N, D) of `hidden` (B, T, D)."""
        layer = self.layer
        attended = layer.self_attn(hidden_states=layer.input_layernorm(hidden), **kwargs)[0]
        attended, residual = (tensor.flatten(0, 1)[places].unsqueeze(0) for tensor in (attended, hidden))
        residual = residual + getattr(layer.self_attn, OUTPUT).now(attended)
        out: torch.Tensor = residual + layer.mlp(layer.post_attention_layernorm(residual))
        return out


def put_off(module: nn.Module) -> None:
    """Let calling `module` give its input back; its method `now` does what calling it did."""
    kind = type(module)
    module.__class__ = type(f"Later{kind.__name__}", (kind,), {"forward": _unchanged, "now": kind.forward})


def _unchanged(_: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Return what came in."""
    return hidden


def _is_late(name: str) -> bool:
    """Return whether a tensor belongs to what runs behind attention."""
    return name.startswith(("mlp.", f"self_attn.{OUTPUT}."))
