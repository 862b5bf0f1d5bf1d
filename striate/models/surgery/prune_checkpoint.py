"""Removes decoder layers from a checkpoint on disk: safetensors are renamed and copied, the model is never built."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from striate.artifacts import Region, read_document, write_document
from striate.errors import ModelError
from striate.models.interventions.model_rule import save_rule
from striate.models.io.adapter_folder import is_adapter
from striate.models.io.quiet import quietly
from striate.models.io.save import REGION_FILE
from striate.models.io.weights.safetensors_shards import Stored, by_file, parameter_count, read_shards, write_shards
from striate.models.io.weights.stored_model import check_unquantized, copy_small_files, stored_targets, write_config
from striate.models.io.weights.stored_names import StoredNames, Target
from striate.models.structure.anatomy import Anatomy, layer_of
from striate.models.structure.meta_model import blueprint
from striate.models.surgery.config_edits import cannot_remove
from striate.models.surgery.remove_layers import remove_layers
from striate.models.surgery.renumber import renumbered
from striate.models.visual_token_skipping.rule import load_rule
from striate.storage.atomic import new_folder
from striate.storage.fingerprints import RECORD_FILE
from striate.storage.read_files import user_path

# Files that are not copied: what is rewritten, or describes the model before pruning.
_OWN = frozenset({"config.json", REGION_FILE, "prune.json", RECORD_FILE})
Shape = tuple[int, ...]


@dataclass(frozen=True)
class PrunedCheckpoint:
    """The result of pruning: new numbers of the layers that stay, and parameters stored before and after."""

    old_to_new: dict[int, int]
    parameters_before: int
    parameters_after: int


def prune_checkpoint(source: Path | str, remove: Sequence[int], out: Path | str) -> PrunedCheckpoint:
    """Return what was kept, after writing the LVLM in `source` without the decoder layers `remove` to `out`.

    The same edits as `remove_layers.remove_layers`, made on a model without weights; the tensors are then copied from
    shard to shard, byte by byte. Peak memory is that of the largest header. Processor, chat template, generation config
    and other small files come along, `region.json` and the rule in the new layer numbers.

    Raises:
        ModelError: no such model, an adapter, weights that are not whole or not of this config, layers that can't go.
        ArtifactError: `out` holds files already or can't be written.
    """
    folder = _checked(user_path(source))
    plan = blueprint(str(folder))
    check_unquantized(plan.model.config, folder, "prune first, quantise afterwards")
    stored = read_shards(folder)
    targets = stored_targets(plan.model, plan.anatomy, stored, folder)
    layers = {name: layer_of(plan.anatomy, target.name) for name, target in targets.items()}
    region = _region(folder, plan.anatomy, remove)
    load_rule(plan.model, folder)
    with quietly(True):
        before = _shapes(plan.model)
        old_to_new = remove_layers(plan.model, remove)
        names = _new_names(plan.model, plan.anatomy, targets, layers, old_to_new)
        kept = {name: stored[name] for name in names}
        for name, target in targets.items():
            if layers[name] is None and target.name in before:
                kept[name] = _cut(stored[name], target, before, plan.model, tuple(old_to_new), plan.anatomy.num_layers)
        with new_folder(Path(out)) as target_folder:
            copy_small_files(folder, target_folder, _OWN)
            write_config(plan.model, target_folder)
            write_shards(target_folder, by_file(kept, names))
            if region is not None:
                write_document(target_folder / REGION_FILE, renumbered(region, old_to_new))
            save_rule(plan.model, target_folder)
    return PrunedCheckpoint(
        old_to_new,
        parameter_count(stored),
        parameter_count(kept),
    )


def _checked(folder: Path) -> Path:
    if not folder.is_dir():
        raise ModelError(f"no model folder at {folder}", "a folder with config.json and safetensors", "check the path")
    if is_adapter(folder):
        raise ModelError(
            f"{folder} is an adapter: it has no decoder layers of its own",
            "a whole model",
            f"merge it first: `striate merge {shlex.quote(str(folder))} --out DIR`",
        )
    return folder


def _region(folder: Path, anatomy: Anatomy, remove: Sequence[int]) -> Region | None:
    """Return the region that the checkpoint carries, if it does; refuse to cut into it."""
    file = folder / REGION_FILE
    if not file.is_file():
        return None
    region = read_document(file, Region)
    if region.num_layers != anatomy.num_layers:
        given = f"{file} is of a model with {region.num_layers} decoder layers, and this one has {anatomy.num_layers}"
        raise ModelError(given, "the region of this model", "remove that file, or put the right one there")
    inside = sorted(set(remove) & set(region.layers))
    if inside:
        raise ModelError(
            f"layer {', '.join(map(str, inside))} lies in the region that this model was trained on",
            f"layers outside the region: {', '.join(map(str, region.outside)) or 'none'}",
            f"choose other layers, or remove {file} to prune regardless",
        )
    return region


def _new_names(
    model: Any,
    anatomy: Anatomy,
    targets: Mapping[str, Target],
    layers: Mapping[str, int | None],
    old_to_new: Mapping[int, int],
) -> dict[str, str]:
    """Return the new stored name of every tensor that stays; `model` has its layers removed already."""
    renaming = StoredNames(model)
    names: dict[str, str] = {}
    for stored, target in targets.items():
        old = layers[stored]
        if old is None or old_to_new.get(old) == old:
            names[stored] = stored
        elif old in old_to_new:
            new = old_to_new[old]
            stacks = (anatomy.layers_name, *anatomy.companion_names)
            stack = next(name for name in stacks if target.name.startswith(f"{name}.{old}."))
            rest = target.name.removeprefix(f"{stack}.{old}.")
            name = renaming.renumbered(stored, f"{stack}.{new}.{rest}", old, new)
            if name is None:
                raise cannot_remove(f"the stored name {stored} can't be renumbered from layer {old} to {new}")
            names[stored] = name
    return names


def _cut(
    tensor: Stored, target: Target, before: Mapping[str, Shape], model: Any, kept: Sequence[int], num_layers: int
) -> Stored:
    """Return a tensor beside the stack, cut where it holds one block a layer: its shape in `model` has then changed."""
    now = model.get_parameter(target.name).shape
    axes = [axis for axis, size in enumerate(before[target.name]) if now[axis] != size]
    if not axes:
        return tensor
    if target.reshaped:
        raise cannot_remove(f"the stored tensors of {target.name} hold one block a layer, in a form of their own")
    return tensor.only(axes[0], kept, num_layers)


def _shapes(model: Any) -> dict[str, Shape]:
    """Return the shape of every parameter, shared ones under each of their names."""
    return {name: tuple(tensor.shape) for name, tensor in model.named_parameters(remove_duplicate=False)}
