"""One call of a layer's function, taken apart: what it computes with, and what two alike calls share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from striate.training.compile.layer_function import LayerFunction

Signature = tuple[Any, ...]
_PLAIN = (bool, int, float, str, type(None), torch.dtype)


@dataclass(frozen=True)
class Call:
    """A function, a layer's tensors, random keys and arguments.

    Attributes:
        function: of the layer's kind.
        tensors: of the layer, by name.
        given: the tensors among keys and arguments; the hidden states are the first.
        form: how `given` is put together again.
    """

    function: LayerFunction
    tensors: Mapping[str, torch.Tensor]
    given: tuple[torch.Tensor, ...]
    form: tuple[Any, ...]

    @classmethod
    def of(
        cls,
        function: LayerFunction,
        tensors: Mapping[str, torch.Tensor],
        keys: torch.Tensor | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Call | None:
        """Return the call, or None if an argument is neither a tensor, nor plain, nor a tuple or list of these."""
        given: list[torch.Tensor] = []
        rest = dict(kwargs)
        hidden = args[0] if args else rest.pop("hidden_states")
        try:
            form = tuple(_form(value, given) for value in (hidden, args[1:], keys, *rest.values()))
        except TypeError:
            return None
        return cls(function, tensors, tuple(given), (bool(args), tuple(rest), *form))

    @property
    def hidden(self) -> torch.Tensor:
        """The hidden states that the layer is given."""
        return self.given[0]

    def signature(self) -> Signature:
        """Return what calls must share to be computed alike: function, forms and number formats."""
        device = self.hidden.device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        return id(self.function), autocast, self.form, tuple(_describe(tensor) for tensor in self.given)

    def places(self) -> tuple[int, ...]:
        """Return where the layer's tensors lie in memory: training in place leaves them there."""
        return tuple(tensor.data_ptr() for tensor in self.tensors.values())

    def trained(self) -> list[torch.Tensor]:
        """Return the layer's tensors that need a gradient."""
        return [tensor for tensor in self.tensors.values() if tensor.requires_grad]

    def run(self, given: tuple[torch.Tensor, ...]) -> Any:
        """Return what the function gives with `given` in the place of the call's own tensors."""
        left = iter(given)
        as_first, names, hidden, args, keys, *rest = self.form
        hidden, args, keys = (_filled(part, left) for part in (hidden, args, keys))
        kwargs = {name: _filled(part, left) for name, part in zip(names, rest, strict=True)}
        if as_first:
            return self.function(self.tensors, keys, (hidden, *args), kwargs)
        return self.function(self.tensors, keys, args, {"hidden_states": hidden, **kwargs})


def _form(value: Any, given: list[torch.Tensor]) -> Any:
    """Return the form of an argument, and add its tensors to `given`.

    Raises:
        TypeError: it holds something else.
    """
    if isinstance(value, torch.Tensor):
        given.append(value)
        return torch.Tensor
    if type(value) in (tuple, list):
        return type(value), tuple(_form(part, given) for part in value)
    if isinstance(value, _PLAIN):
        return None, value
    raise TypeError(type(value).__name__)


def _filled(form: Any, given: Any) -> Any:
    """Return the argument of a form, with the next tensors of `given`."""
    if form is torch.Tensor:
        return next(given)
    kind, value = form
    return value if kind is None else kind(_filled(part, given) for part in value)


def _describe(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return what alike tensors share."""
    return tensor.shape, tensor.dtype, tensor.requires_grad, tensor.device
