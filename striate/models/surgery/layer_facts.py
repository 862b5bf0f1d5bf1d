"""Compares the attributes of each kept decoder layer (its number, window, type) with what a reload would build."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from striate.models.structure.families import SHARING
from striate.models.surgery.config_edits import cannot_remove

_STATES = frozenset({"training", "gradient_checkpointing"})


def index_changes(
    old_layer: nn.Module, new_layer: nn.Module, old: int, new: int, kept: Sequence[int]
) -> Iterator[tuple[nn.Module, str, int]]:
    """Yield the layer numbers to set in `old_layer`, and whether later layers read its keys and values.

    Refuses if anything else differs from what a reload builds.

    Raises:
        ModelError: a tensor or a fact of the layer would be another on reload.
    """
    _check_weights(old_layer, new_layer, old)
    rebuilt = dict(new_layer.named_modules())
    new_number = {layer: number for number, layer in enumerate(kept)}
    for path, module in old_layer.named_modules():
        if path not in rebuilt:
            raise cannot_remove(f"layer {old} has a part {path!r} that layer {new} would lack on reload")
        now, then = facts(module), facts(rebuilt[path])
        for name in sorted(now.keys() & then.keys()):
            if now[name] == then[name]:
                continue
            if name in SHARING or (type(now[name]) is int and _follows(name, now[name], then[name], old, new_number)):
                yield module, name, then[name]
            else:
                place = ".".join(filter(None, (path, name)))
                raise cannot_remove(f"{place} of layer {old} is {now[name]!r} and would be {then[name]!r} on reload")


def _check_weights(old_layer: nn.Module, new_layer: nn.Module, old: int) -> None:
    """Refuse a layer whose tensors would not fit on reload; quantised weights have shapes of their own."""
    shapes = {name: tuple(tensor.shape) for name, tensor in new_layer.named_parameters()}
    ours = dict(old_layer.named_parameters())
    for name, tensor in ours.items():
        if tensor.is_floating_point() and shapes.get(name) != tuple(tensor.shape):
            raise cannot_remove(
                f"{name} of layer {old} has shape {tuple(tensor.shape)} and would have {shapes.get(name)} on reload"
            )
    missing = sorted(shapes.keys() - ours.keys())
    if missing:
        raise cannot_remove(f"layer {old} has no {missing[0]}, and would have one on reload")


def facts(module: nn.Module) -> dict[str, Any]:
    """Return the public plain values that a module holds, such as a layer number, a window or a list of layer types."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in _STATES and _is_plain(value)
    }


def _follows(name: str, now: int, then: Any, old: int, new_number: dict[int, int]) -> bool:
    """Return whether a number is the layer's own in its old and new form, or that of another kept layer."""
    if type(then) is not int or new_number.get(now) != then:
        return False
    return now == old or ("layer" in name and ("idx" in name or "index" in name))


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(entry) for entry in value)
    return value is None or isinstance(value, bool | int | float | str)
