"""The line before one decoder layer: the hidden states there, taken out of a model, and put in again.

The model's own forward runs each time, so that positions, masks, the layers from there on, the final norm and the LM
head are the family's own code. Left out are the vision encoder, the projector, the embeddings and the layers below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from striate.errors import ModelError
from striate.models.interventions.patched_forward import own_forward
from striate.models.structure.anatomy import decoder_layers, find_anatomy, layer_of, unwrap

# Positions of tokens may depend on how many patches a picture has; on the pictures themselves they don't.
_GRIDS = "_grid_thw"


class _CaughtError(Exception):
    """Ends a forward pass once the hidden states are there."""


class HiddenTap:
    """Takes what enters one decoder layer from a model, and lets the model go on from there.

    Attributes:
        model: the model.
        layer: the layer, which must be the first one that trains.
    """

    def __init__(self, model: nn.Module, layer: int) -> None:
        """Look at what lies below the layer.

        Raises:
            ModelError: something there trains, or drops values at random.
        """
        core = unwrap(model)
        self.layer = layer
        self.model = model
        self._layers = decoder_layers(core)
        self._embeddings = core.get_input_embeddings()
        self._tuples: dict[int, tuple[Any, ...] | None] = {}
        self._dtype: torch.dtype | None = None
        _check_frozen(core, layer)

    def states(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return what enters the layer, (B, T, D), without gradients.

        Args:
            inputs: a batch on the device, without labels.

        Raises:
            ModelError: the decoder layers do not hand hidden states (B, T, D) on, one after the other.
        """
        caught: list[Tensor] = []

        def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            caught.append(args[0] if args else kwargs["hidden_states"])
            raise _CaughtError

        with ExitStack() as stack:
            for index in range(self.layer):
                stack.callback(self._layers[index].register_forward_hook(self._note(index)).remove)
            handle = self._layers[self.layer].register_forward_pre_hook(catch, with_kwargs=True)
            stack.callback(handle.remove)
            try:
                with torch.no_grad():
                    self.model(**inputs, use_cache=False)
            except _CaughtError:
                pass
        if not caught or caught[0].shape[:-1] != inputs["input_ids"].shape:
            raise unkept("its decoder layers do not hand on one hidden state a token")
        self._dtype = caught[0].dtype
        return caught[0].detach()

    @contextmanager
    def serving(self, states_BTD: Tensor) -> Iterator[None]:
        """Let the model begin at the layer in the block, with these hidden states; it needs no pixels then."""
        if len(self._tuples) != self.layer:
            raise RuntimeError("states() must be asked once before: it shows what the layers below return")
        given = states_BTD if self._dtype is None else states_BTD.to(self._dtype)

        def put(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            shape = (args[0] if args else kwargs["hidden_states"]).shape
            if shape != given.shape:
                raise unkept(f"it asks for hidden states {tuple(shape)}, and {tuple(given.shape)} were kept")
            return ((given, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": given})

        with ExitStack() as stack:
            stack.enter_context(own_forward(self._embeddings, _instead(self._embeddings.forward, given)))
            for index in range(self.layer):
                stack.enter_context(own_forward(self._layers[index], _pass_on(self._tuples[index])))
            handle = self._layers[self.layer].register_forward_pre_hook(put, with_kwargs=True)
            stack.callback(handle.remove)
            yield

    def _note(self, index: int) -> Callable[..., None]:
        """Return a hook that notes in which form layer `index` returns its hidden states."""

        def note(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            rest = output[1:] if isinstance(output, tuple) else None
            if not isinstance(output, Tensor) and (rest is None or any(isinstance(one, Tensor) for one in rest)):
                raise unkept(f"layer {index} hands on more than hidden states")
            self._tuples[index] = rest

        return note


def without_pictures(inputs: Mapping[str, Tensor], tokens: tuple[int, ...]) -> dict[str, Tensor]:
    """Return the inputs without what only the vision encoder reads: those of the tokens' shape, and picture grids."""
    return {
        name: value
        for name, value in inputs.items()
        if name.endswith(_GRIDS) or (not name.startswith(("pixel", "image")) and tuple(value.shape[:2]) == tokens)
    }


def unkept(why: str) -> ModelError:
    """Return the error for a model whose hidden states can't be kept, and why."""
    return ModelError(
        f"machine.cache_hidden does not work with this model and region: {why}",
        "decoder layers that hand on nothing but hidden states, with all that lies below the region frozen",
        "use machine.cache_hidden=off",
    )


def _check_frozen(core: Any, layer: int) -> None:
    """Raise if anything that trains, or drops values at random, may lie before the layer."""
    anatomy = find_anatomy(core)

    def is_before(name: str) -> bool:
        index = layer_of(anatomy, name)
        return index is None or index < layer

    for name, parameter in core.named_parameters():
        if parameter.requires_grad and is_before(name):
            raise unkept(f"{name} trains, and is not in layer {layer} or one above it")


def _instead(original: Callable[..., Any], states_BTD: Tensor) -> Callable[..., Any]:
    """Return a forward of the embeddings that gives the hidden states for the tokens that they are of."""

    def forward(ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        return states_BTD if ids.shape == states_BTD.shape[:-1] else original(ids, *args, **kwargs)

    return forward


def _pass_on(rest: tuple[Any, ...] | None) -> Callable[..., Any]:
    """Return a forward of a layer that gives back what enters it, in the layer's own form."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return hidden if rest is None else (hidden, *rest)

    return forward
