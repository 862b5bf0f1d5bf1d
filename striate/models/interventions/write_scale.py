"""Scales all that decoder layers add to the residual stream, and proves that only its direction is read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from striate.errors import ModelError
from striate.models.interventions.layer_replay import LayerCall
from striate.models.interventions.partial_pass import layers_skipped
from striate.models.interventions.residual_write import is_linear
from striate.models.interventions.selected_logits import answer_logits
from striate.models.structure.anatomy import Anatomy
from striate.models.structure.decoder_stack import decoder_layers

# Norms add a small constant to a state's size, so that twice of it has not quite the same direction.
_CLOSE = 2e-2


def writing_linears(core: Any, inputs: Mapping[str, Any], layers: Collection[int]) -> dict[int, dict[str, nn.Module]]:
    """Return, of each layer, the linear modules that may write to the residual stream, by name within the layer.

    Of every direct part of a layer (attention, MLP) that is the last linear module as wide as the state that ran.
    """
    ran: dict[int, dict[str, tuple[str, nn.Module]]] = {index: {} for index in layers}
    tokens = inputs["input_ids"].numel()

    def watch(index: int, name: str, width: int, module: nn.Module, output: Tensor) -> None:
        if output.shape[-1] == width and output.numel() == tokens * width:
            ran[index][name.partition(".")[0]] = (name, module)

    width = core.get_input_embeddings().weight.shape[-1]
    with ExitStack() as hooks:
        for index in layers:
            for name, module in decoder_layers(core)[index].named_modules():
                if is_linear(module):
                    hooks.callback(module.register_forward_hook(_named(watch, index, name, width)).remove)
        core(**inputs, use_cache=False)
    return {index: dict(parts.values()) for index, parts in ran.items()}


def scale_parameters(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Return weights and biases of linear modules."""
    return [parameter for module in modules for parameter in module.parameters(recurse=False)]


def check_direction_only(
    core: Any,
    anatomy: Anatomy,
    inputs: Mapping[str, Any],
    places_N: Tensor,
    removed: Collection[int],
    after: int,
    modules: Sequence[nn.Module],
) -> None:
    """Return if twice the state behind layer `after`, with twice all that `modules` write, gives the same logits.

    Raises:
        ModelError: it does not: something reads the state's length, or writes to it in another way.
    """
    width = inputs["input_ids"].shape[1]
    rows_N, columns_N = places_N // width, places_N % width
    with layers_skipped(core, removed):
        plain_NV = answer_logits(core, inputs, rows_N, columns_N).float()
        handle = decoder_layers(core)[after].register_forward_hook(_doubled_state, with_kwargs=True)
        try:
            with _doubled(scale_parameters(modules)):
                doubled_NV = answer_logits(core, inputs, rows_N, columns_N).float()
        finally:
            handle.remove()
    moved, size = float((doubled_NV - plain_NV).abs().max()), float(plain_NV.abs().max())
    if not moved <= _CLOSE * size:
        raise ModelError(
            f"{anatomy.model_type} can't be compensated by a scale: the state's length is read, or added to in another"
            f" way (doubled, logits move by {moved:.3g} on a scale of {size:.3g})",
            "layers that read normalised states, and add to them by the last linear modules of attention and MLP",
            "set prune.compensate to refit or none",
        )


def _doubled_state(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    call = LayerCall(args, kwargs, output)
    return call.returning(call.x_out * 2)


@contextmanager
def _doubled(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    former = [parameter.data for parameter in parameters]
    for parameter, values in zip(parameters, former, strict=True):
        parameter.data = values * 2
    try:
        yield
    finally:
        for parameter, values in zip(parameters, former, strict=True):
            parameter.data = values


def _named(watch: Any, index: int, name: str, width: int) -> Any:
    return lambda module, args, output: watch(index, name, width, module, output)
