"""Removes decoder layers so that the smaller model runs, saves and reloads as an ordinary one."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from striate.errors import ModelError
from striate.models.interventions.model_rule import renumbered_rule
from striate.models.structure.anatomy import Anatomy, find_anatomy
from striate.models.structure.decoder_stack import Stack, config_parts, decoder_config, depth_field, find_stack, unwrap
from striate.models.structure.families import BOUNDARIES, INJECTED, family_of
from striate.models.surgery.config_edits import OVERRIDES, cannot_remove, config_edits
from striate.models.surgery.layer_facts import facts, index_changes
from striate.models.surgery.layer_tensors import cut, tensor_slices
from striate.models.trainable.parameter_selection import is_adapted


@dataclass(frozen=True)
class _Plan:
    """All edits of a removal, made and checked before the first of them is applied."""

    kept: tuple[int, ...]
    text_edits: dict[str, Any]
    outer_edits: dict[str, Any]
    indices: tuple[tuple[nn.Module, str, int], ...]
    decoder_facts: dict[str, Any]
    slices: dict[str, int]


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
    kept = [layer for layer in range(anatomy.num_layers) if layer not in set(remove)]
    old_to_new = {old: new for new, old in enumerate(kept)}
    if remove:
        with renumbered_rule(model, old_to_new):
            _apply(model, _plan(model, anatomy, remove))
    return old_to_new


def check_removable(model: nn.Module, remove: Sequence[int]) -> None:
    """Raise what `remove_layers` would raise; nothing is changed.

    Raises:
        ModelError: as `remove_layers`.
    """
    anatomy = find_anatomy(model)
    _check_choice(model, anatomy, remove)
    if remove:
        _plan(model, anatomy, remove)


def _check_choice(model: Any, anatomy: Anatomy, remove: Sequence[int]) -> None:
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
    """Refuse layers that the model feeds by number, or that its family needs."""
    family = family_of(anatomy.model_type)
    if family.no_removal:
        raise cannot_remove(f"{family.title}: {family.no_removal}")
    _check_boundaries(model, remove)
    injected = max((len(value) for field in INJECTED for value in _values(unwrap(model).config, field)), default=0)
    fed = sorted(layer for layer in remove if layer < injected)
    if fed:
        raise cannot_remove(
            f"{family.title if family.model_type else type(unwrap(model)).__name__} adds features of the vision encoder"
            f" to its first {injected} decoder layers by number, layer {', '.join(map(str, fed))} among them"
        )


def _check_boundaries(model: Any, remove: Sequence[int]) -> None:
    """Refuse layers that mark a boundary for later ones."""
    layers = find_stack(model).layers
    for layer in remove:
        for module in layers[layer].modules():
            for name, reason in BOUNDARIES.items():
                if facts(module).get(name) is True:
                    raise cannot_remove(f"of layer {layer}, {reason}")


def _values(config: Any, field: str) -> Iterator[list[Any] | tuple[Any, ...]]:
    for part in config_parts(config):
        value = vars(part).get(field)
        if isinstance(value, list | tuple):
            yield value


def _plan(model: Any, anatomy: Anatomy, remove: Sequence[int]) -> _Plan:
    """Return the edits, checked against a model built from the edited config."""
    kept = tuple(layer for layer in range(anatomy.num_layers) if layer not in remove)
    core = unwrap(model)
    edited = copy.deepcopy(core.config)
    text = _counterpart(core.config, edited, decoder_config(core))
    text_edits = config_edits(text, kept, anatomy.num_layers)
    outer_edits = config_edits(edited, kept, anatomy.num_layers) if text is not edited else {}
    _set_all(text, text_edits)
    _set_all(edited, outer_edits)
    skeleton = _skeleton(core, edited, {**text_edits, **outer_edits})
    stack, rebuilt = find_stack(core), find_stack(skeleton)
    _check_companions(stack, rebuilt, len(kept))
    indices = [
        change
        for new, old in enumerate(kept)
        for ours, theirs in _pairs(stack, rebuilt)
        for change in index_changes(ours[old], theirs[new], old, new, kept)
    ]
    before, after = facts(stack.holder), facts(rebuilt.holder)
    copied = {name: after[name] for name in before.keys() & after.keys() if before[name] != after[name]}
    slices = tensor_slices(core, skeleton, anatomy, len(kept))
    return _Plan(kept, text_edits, outer_edits, tuple(indices), copied, slices)


def _apply(model: Any, plan: _Plan) -> None:
    core = unwrap(model)
    stack = find_stack(core)
    depth = len(stack.layers)
    for config in _text_configs(core):
        _set_all(config, plan.text_edits)
    _set_all(core.config, plan.outer_edits)
    for layers in (*stack.companions.values(), stack.layers):
        for layer in sorted(set(range(depth)) - set(plan.kept), reverse=True):
            del layers[layer]
    for module, name, value in plan.indices:
        setattr(module, name, value)
    for name, value in plan.decoder_facts.items():
        setattr(stack.holder, name, value)
    for name, axis in plan.slices.items():
        cut(core, name, axis, plan.kept, depth)


def _counterpart(config: Any, copied: Any, part: Any) -> Any:
    """Return the config in the copy that stands where `part` stands in `config`."""
    places = zip(config_parts(config), config_parts(copied), strict=True)
    return next(twin for original, twin in places if original is part)


def _pairs(stack: Stack, rebuilt: Stack) -> Iterator[tuple[nn.ModuleList, nn.ModuleList]]:
    yield stack.layers, rebuilt.layers
    for name, layers in stack.companions.items():
        yield layers, getattr(rebuilt.holder, name)


def _check_companions(stack: Stack, rebuilt: Stack, depth: int) -> None:
    for name, layers in {stack.name: stack.layers, **stack.companions}.items():
        built = len(getattr(rebuilt.holder, name))
        if built != depth:
            raise cannot_remove(f"of {len(layers)} entries in {name}, {built} and not {depth} would be built on reload")


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
    text = decoder_config(skeleton)
    for name, value in edits.items():
        read = _read(text, name, _read(reread, name, None))
        if _plain(read) != _plain(value):
            raise cannot_remove(f"the config does not keep {name}={value}: on reload it is {read}")
    return skeleton


def _read(config: Any, name: str, default: Any) -> Any:
    """Return a field of a config as it is stored."""
    if name != OVERRIDES:
        return vars(config).get(name, default)
    stored = config.to_dict().get(name)
    return {int(layer): values for layer, values in stored.items()} if stored else default


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _text_configs(model: Any) -> list[Any]:
    """Return each config object that describes the decoder: modules may hold copies of their own."""
    text = decoder_config(model)
    depth = depth_field(text)
    configs = {id(text): text}
    for module in (model, *model.modules()):
        config = getattr(module, "config", None)
        for part in config_parts(config) if isinstance(config, PretrainedConfig) else ():
            if type(part) is type(text) and getattr(part, depth) == getattr(text, depth):
                configs[id(part)] = part
    return list(configs.values())


def _set_all(config: Any, edits: Mapping[str, Any]) -> None:
    # Overrides of single layers come last: they are checked against the depth.
    for name in sorted(edits, key=lambda name: name == OVERRIDES):
        setattr(config, name, copy.deepcopy(edits[name]))
