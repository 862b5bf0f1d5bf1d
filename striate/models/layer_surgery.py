"""Remove decoder layers so that the smaller model runs, saves and reloads as an ordinary one."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from striate.errors import ModelError
from striate.models.anatomy import Anatomy, find_anatomy, find_decoder
from striate.models.choice import is_adapted
from striate.models.families import family_of
from striate.models.layer_config import DEPTH, cannot_remove, config_edits
from striate.models.self_test import self_test

__all__ = ["remove_layers", "self_test"]

_STATES = frozenset({"training", "gradient_checkpointing"})


@dataclass(frozen=True)
class _Plan:
    """All edits of a removal, made and checked before the first of them is applied."""

    kept: tuple[int, ...]
    text_edits: dict[str, Any]
    outer_edits: dict[str, Any]
    indices: tuple[tuple[nn.Module, str, int], ...]
    decoder_facts: dict[str, Any]


def remove_layers(model: nn.Module, remove: Sequence[int]) -> dict[int, int]:
    """Return the new number of each layer that stays, after removing the decoder layers `remove` in place.

    Three edits keep the model whole: the stack itself, the layer number that each kept layer carries for its cache,
    and every config field that speaks of layers. A model built from the new config, without weights, is compared
    with the kept layers first; nothing is changed unless it has the same layers. Removing nothing changes nothing.

    Raises:
        ModelError: layers out of range, twice or all of them; an adapter still on the model; or a model that keeps
            something about these layers which can't be kept true, with the reason.
    """
    anatomy = find_anatomy(model)
    _check_choice(model, anatomy, remove)
    if remove:
        _apply(model, _plan(model, anatomy, remove))
    kept = [layer for layer in range(anatomy.num_layers) if layer not in set(remove)]
    return {old: new for new, old in enumerate(kept)}


def _check_choice(model: Any, anatomy: Anatomy, remove: Sequence[int]) -> None:
    """Refuse layers that are not there, all of them, or that the family needs."""
    allowed = f"different layers from 0 to {anatomy.num_layers - 1}, not all of them"
    hint = "layers are counted from 0; `striate inspect MODEL` shows them"
    wrong: list[Any] = [layer for layer in remove if isinstance(layer, bool) or not isinstance(layer, int)]
    wrong = wrong or [layer for layer in remove if not 0 <= layer < anatomy.num_layers]
    if wrong:
        raise ModelError(f"there is no decoder layer {', '.join(map(repr, wrong))} to remove", allowed, hint)
    if len(set(remove)) < len(remove):
        raise ModelError(f"the layers to remove name one twice: {list(remove)}", allowed, hint)
    if len(remove) == anatomy.num_layers:
        raise ModelError(f"removing all {anatomy.num_layers} decoder layers leaves no model", allowed, hint)
    if remove and is_adapted(model):
        raise ModelError(
            "layers can't be removed under a PEFT adapter: its names hold the old layer numbers",
            "a plain model",
            "load the checkpoint with merge=True first",
        )
    if remove:
        _check_family(model, anatomy, remove)


def _check_family(model: Any, anatomy: Anatomy, remove: Sequence[int]) -> None:
    """Refuse layers that the model's family feeds or shares by number."""
    family = family_of(anatomy.model_type)
    if family.no_removal:
        raise cannot_remove(f"{family.title}: {family.no_removal}")
    injected = len(attrgetter(family.injects)(model.config)) if family.injects else 0
    fed = sorted(layer for layer in remove if layer < injected)
    if fed:
        raise cannot_remove(
            f"{family.title} adds features of the vision encoder to its first {injected} decoder layers by number,"
            f" layer {', '.join(map(str, fed))} among them"
        )


def _plan(model: Any, anatomy: Anatomy, remove: Sequence[int]) -> _Plan:
    """Return the edits, checked against a model built from the edited config."""
    kept = tuple(layer for layer in range(anatomy.num_layers) if layer not in remove)
    edited = copy.deepcopy(model.config)
    text = edited.get_text_config(decoder=True)
    text_edits = config_edits(text, kept, anatomy.num_layers)
    outer_edits = config_edits(edited, kept, anatomy.num_layers) if text is not edited else {}
    _set_all(text, text_edits)
    _set_all(edited, outer_edits)
    skeleton = _skeleton(model, edited, {**text_edits, **outer_edits})
    decoder = find_decoder(model)
    new_decoder = find_decoder(skeleton)
    indices = [
        change
        for new, old in enumerate(kept)
        for change in _index_changes(decoder.layers[old], new_decoder.layers[new], old, new)
    ]
    before, after = _facts(decoder), _facts(new_decoder)
    copied = {name: after[name] for name in before.keys() & after.keys() if before[name] != after[name]}
    return _Plan(kept, text_edits, outer_edits, tuple(indices), copied)


def _apply(model: Any, plan: _Plan) -> None:
    """Make the planned edits: stack, layer numbers, configs, and what the decoder copied from its config."""
    decoder = find_decoder(model)
    for config in _text_configs(model, decoder):
        _set_all(config, plan.text_edits)
    _set_all(model.config, plan.outer_edits)
    for layer in sorted(set(range(len(decoder.layers))) - set(plan.kept), reverse=True):
        del decoder.layers[layer]
    for module, name, value in plan.indices:
        setattr(module, name, value)
    for name, value in plan.decoder_facts.items():
        setattr(decoder, name, value)


def _skeleton(model: Any, edited: Any, edits: Mapping[str, Any]) -> Any:
    """Return the model that a reload would build from the edited config, without weights."""
    try:
        stored = json.loads(json.dumps(edited.to_dict(), default=str))
        reread = type(edited).from_dict(stored)
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            skeleton = type(model)._from_config(copy.deepcopy(reread))
    except Exception as error:
        # Any failure means the same here: the smaller config does not build, so the model would not reload.
        raise cannot_remove(f"a model of the smaller depth does not build ({error})") from error
    text = reread.get_text_config(decoder=True)
    for name, value in edits.items():
        read = getattr(text, name, getattr(reread, name, None))
        if _plain(read) != _plain(value):
            raise cannot_remove(f"the config does not keep {name}={value}: on reload it is {read}")
    return skeleton


def _index_changes(
    old_layer: nn.Module, new_layer: nn.Module, old: int, new: int
) -> Iterator[tuple[nn.Module, str, int]]:
    """Yield the layer numbers to set in `old_layer`; refuse if anything else differs from what a reload builds."""
    rebuilt = dict(new_layer.named_modules())
    _check_weights(old_layer, new_layer, old)
    for path, module in old_layer.named_modules():
        if path not in rebuilt:
            raise cannot_remove(f"layer {old} has a part {path!r} that layer {new} would lack on reload")
        now, then = _facts(module), _facts(rebuilt[path])
        for name in sorted(now.keys() & then.keys()):
            if now[name] == then[name]:
                continue
            if type(now[name]) is int and (now[name], then[name]) == (old, new):
                yield module, name, new
            else:
                place = ".".join(filter(None, (path, name)))
                raise cannot_remove(f"{place} of layer {old} is {now[name]!r} and would be {then[name]!r} on reload")


def _check_weights(old_layer: nn.Module, new_layer: nn.Module, old: int) -> None:
    """Refuse a layer whose tensors would not fit on reload; quantised weights have shapes of their own."""
    shapes = {name: tuple(tensor.shape) for name, tensor in new_layer.named_parameters()}
    for name, tensor in old_layer.named_parameters():
        if tensor.is_floating_point() and shapes.get(name) != tuple(tensor.shape):
            raise cannot_remove(
                f"{name} of layer {old} has shape {tuple(tensor.shape)} and would have {shapes.get(name)} on reload"
            )


def _facts(module: nn.Module) -> dict[str, Any]:
    """Return the public plain values that a module holds, such as a layer number, a window or a list of layer types."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in _STATES and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    """Return whether `value` is a number, a text, nothing, or a list of such."""
    if isinstance(value, list | tuple):
        return all(_is_plain(entry) for entry in value)
    return value is None or isinstance(value, bool | int | float | str)


def _plain(value: Any) -> Any:
    """Return `value` with tuples as lists and dict keys as text, as JSON stores them."""
    return json.loads(json.dumps(value))


def _text_configs(model: Any, decoder: nn.Module) -> list[Any]:
    """Return each config object that describes the decoder: modules may hold copies of their own."""
    text = model.config.get_text_config(decoder=True)
    found = {id(text): text}
    for module in decoder.modules():
        config = getattr(module, "config", None)
        same_kind = isinstance(config, PretrainedConfig) and type(config) is type(text)
        if same_kind and getattr(config, DEPTH) == getattr(text, DEPTH):
            found[id(config)] = config
    return list(found.values())


def _set_all(config: Any, edits: Mapping[str, Any]) -> None:
    """Set each edited field of one config."""
    for name, value in edits.items():
        setattr(config, name, copy.deepcopy(value))
