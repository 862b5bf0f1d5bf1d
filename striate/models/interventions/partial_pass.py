"""Forward passes that leave decoder layers out, and that end behind a chosen one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

from striate.errors import ModelError
from striate.models.interventions.layer_replay import LayerCall
from striate.models.structure.decoder_stack import find_stack

Taken = TypeVar("Taken")


class _ReachedError(Exception):
    """The last layer that was asked for has run."""


@contextmanager
def layers_skipped(core: Any, layers: Collection[int]) -> Iterator[None]:
    """Let decoder layers, and what belongs to them in lists beside the stack, pass on what they get in the block."""
    stack = find_stack(core)
    with ExitStack() as hooks:
        for blocks in (stack.layers, *stack.companions.values()):
            for layer in layers:
                hooks.callback(blocks[layer].register_forward_hook(_pass_on, with_kwargs=True).remove)
        yield


def calls_until(
    core: Any, inputs: Mapping[str, Any], layers: Sequence[int], take: Callable[[LayerCall], Taken]
) -> dict[int, Taken]:
    """Return what `take` makes of the calls of decoder `layers` in one forward pass without a cache.

    Nothing behind the last of them runs, and nothing of a call is held but what was taken.

    Raises:
        ModelError: a layer runs twice, or its hidden states are not of shape (batch, tokens, width).
    """
    taken: dict[int, Taken] = {}
    last, shape = max(layers), tuple(inputs["input_ids"].shape)

    def watch(index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = LayerCall(args, kwargs, output)
        state = call.x_out
        if index in taken or not isinstance(state, Tensor) or state.ndim != 3 or tuple(state.shape[:2]) != shape:
            raise _unfit(index, "it runs twice" if index in taken else "its hidden states have another shape")
        taken[index] = take(call)
        if index == last:
            raise _ReachedError

    with ExitStack() as hooks:
        for index in dict.fromkeys(layers):
            layer = find_stack(core).layers[index]
            hook = _indexed(watch, index)
            hooks.callback(layer.register_forward_hook(hook, with_kwargs=True).remove)
        try:
            core(**inputs, use_cache=False)
        except _ReachedError:
            return taken
    raise _unfit(last, "it did not run")


def _indexed(watch: Any, index: int) -> Any:
    return lambda layer, args, kwargs, output: watch(index, layer, args, kwargs, output)


def _pass_on(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    call = LayerCall(args, kwargs, output)
    return call.returning(call.x_in)


def _unfit(layer: int, problem: str) -> ModelError:
    return ModelError(
        f"the state behind decoder layer {layer} can't be watched: {problem}",
        "decoder layers that run once each, on hidden states of shape (batch, tokens, width)",
        "set prune.compensate to none",
    )
