"""Tap between the frozen vision encoder and the projector: takes features out of a model, and puts cached ones in.

The model's own code runs around it: the encoder is left out, and the projector gets cached features.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from striate.errors import ModelError, first_line
from striate.models.interventions.patched_forward import own_forward
from striate.models.structure.anatomy import find_anatomy, unwrap

PIXELS = "pixel_values"
Pictures = Mapping[str, torch.Tensor]


class _CaughtError(Exception):
    """Ends a forward pass once the features are there."""


class VisionTap:
    """Returns the projector's input, and feeds it to the projector in the encoder's place.

    Attributes:
        device: of the model.
    """

    def __init__(self, model: nn.Module) -> None:
        """Find the encoder and the projector.

        Raises:
            ModelError: nothing flows between the two that could be cached, and why.
        """
        core = unwrap(model)
        anatomy = find_anatomy(core)
        encoder = anatomy.vision_names[0]
        if len(anatomy.projector_names) != 1:
            raise uncached(f"it has {len(anatomy.projector_names)} projectors")
        if anatomy.projector_names[0].startswith(f"{encoder}."):
            raise uncached("its projector lies inside the vision encoder")
        find = getattr(core, "get_image_features", None)
        if find is None:
            raise uncached("it has no get_image_features")
        if any(parameter.requires_grad for parameter in core.get_submodule(encoder).parameters()):
            raise uncached("its vision encoder is not frozen")
        self.device = next(core.parameters()).device
        self._find: Callable[..., Any] = find
        self._taken = set(inspect.signature(find).parameters)
        self._encoder: Any = core.get_submodule(encoder)
        self._projector: Any = core.get_submodule(anatomy.projector_names[0])
        self._template: Any = None
        self._rows = 0

    def features(self, pictures: Pictures) -> torch.Tensor:
        """Return what the projector would get for `pictures`, (rows, ...), on the model's device, without gradients.

        Args:
            pictures: the processor's tensors of one or more pictures.

        Raises:
            ModelError: the model does not lead pictures from its encoder to its projector in one piece.
        """
        caught: list[torch.Tensor] = []

        def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            caught.extend(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
            raise _CaughtError

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self._rows, self._template = _first_tensor(args, kwargs).shape[0], output

        handles = [
            self._projector.register_forward_pre_hook(catch, with_kwargs=True),
            self._encoder.register_forward_hook(note, with_kwargs=True),
        ]
        wanted = self._taken | {PIXELS}
        inputs = {name: value.to(self.device) for name, value in pictures.items() if name in wanted}
        try:
            with torch.no_grad():
                self._find(**inputs)
        except _CaughtError:
            pass
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise uncached(f"its get_image_features fails: {first_line(error)}") from error
        finally:
            for handle in handles:
                handle.remove()
        if len(caught) != 1 or self._template is None:
            raise uncached("its pictures do not go from the vision encoder to the projector in one piece")
        self._template = _like(self._template, lambda tensor: tensor[:0] if tensor.shape[0] == self._rows else tensor)
        return caught[0].detach()

    @contextmanager
    def serving(self, features: torch.Tensor) -> Iterator[None]:
        """Let the model get `features` in the block in place of running its vision encoder.

        Raises:
            ModelError: the model asks for features of another shape.
        """

        def skip(*args: Any, **kwargs: Any) -> Any:
            rows = _first_tensor(args, kwargs).shape[0]
            return _like(self._template, lambda tensor: _empty(tensor, rows))

        def replace(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            wanted = _first_tensor(args, kwargs)
            if wanted.shape != features.shape:
                raise uncached(f"it asks for features {tuple(wanted.shape)}, and {tuple(features.shape)} were cached")

            def swapped(value: Any) -> Any:
                return features if value is wanted else value

            return tuple(map(swapped, args)), {name: swapped(value) for name, value in kwargs.items()}

        handle = self._projector.register_forward_pre_hook(replace, with_kwargs=True)
        try:
            with own_forward(self._encoder, skip):
                yield
        finally:
            handle.remove()

    def same_in_half(self, features: torch.Tensor, dtype: torch.dtype) -> bool:
        """Return whether the projector gives the same, to the bit, for features rounded to `dtype`."""
        with torch.no_grad():
            full, half = self._projector(features), self._projector(features.to(dtype))
        return isinstance(full, torch.Tensor) and torch.equal(full.float(), half.float())


def uncached(why: str) -> ModelError:
    """Return the error for a model whose vision features can't be cached, and why."""
    return ModelError(
        f"machine.cache_vision does not work with this model: {why}",
        "a frozen vision encoder whose features of a picture depend on that picture alone, before a projector",
        "use machine.cache_vision=off",
    )


def _first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """Return the first tensor among a call's arguments: the pictures."""
    tensor: torch.Tensor = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
    return tensor


def _empty(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """Return zeros with `rows` rows in the place of a tensor's rows of pictures; they take no memory."""
    if tensor.ndim == 0 or tensor.shape[0]:
        return tensor
    return tensor.new_zeros(()).expand(rows, *tensor.shape[1:])


def _like(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value) if value.ndim else value
    if isinstance(value, Mapping):
        return type(value)(**{name: _like(part, change) for name, part in value.items()})
    if isinstance(value, list | tuple):
        return type(value)(_like(part, change) for part in value)
    return value
