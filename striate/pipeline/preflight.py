"""Pre-flight checks: what a run is refused for before a stage computes for hours."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from striate.artifacts import Region
from striate.config import BUILTIN, RunConfig
from striate.errors import ConfigError, ModelError, TrainingError, first_line
from striate.healing.healed_layers import layers_ahead
from striate.printable import shown
from striate.pruning.removal import removal_of
from striate.storage.fingerprints import fingerprint
from striate.storage.read_files import user_path

if TYPE_CHECKING:
    import torch

    from striate.tasks.packs.items import Pack

LOGGERS = {"tensorboard": ("tensorboard", "tensorboardX")}
"""The packages of loggers, any of which is enough, where their names are others."""


def labels_of(config: RunConfig) -> list[str]:
    """Return the names of the models that are evaluated: the run's own, then others."""
    there = {"pruned": bool(config.prune.remove), "unhealed": config.heals}
    own = [label for label in config.evaluate.models if there.get(label, True)]
    return [*own, *config.evaluate.others]


def check_base(config: RunConfig, model_path: str) -> None:
    """Raise if the tuned adapter's base would be an adapter itself: nothing could load the two.

    A model that layers left before the tuning is a whole one.

    Raises:
        ModelError: it would.
    """
    from striate.models.io.adapter_folder import is_adapter

    if config.train.method != "full" and not config.prune.first and is_adapter(Path(model_path)):
        raise ModelError(
            f"{model_path} is an adapter: {config.train.method} can't train on top of it",
            "a model with weights of its own, or train.method=full",
            "merge the adapter into its base first (PEFT's merge_and_unload)",
        )


def check_loggers(config: RunConfig) -> None:
    """Raise if a logger of `machine.log_to` is not installed, or can't be imported.

    Raises:
        ConfigError: one is not, or can't.
    """
    for name in config.machine.log_to:
        found = [package for package in LOGGERS.get(name, (name,)) if find_spec(package)]
        allowed, leave = "loggers whose packages are there", "or leave it out of machine.log_to"
        if not found:
            raise ConfigError(
                f"machine.log_to names {name}, which is not installed", allowed, f"pip install {name}, {leave}"
            )
        try:
            import_module(found[0])
        # What a foreign package raises as it is imported can be anything.
        except Exception as error:
            raise ConfigError(
                f"machine.log_to names {name}, and importing {found[0]} fails: {first_line(error)}",
                allowed,
                f"install {name} again, {leave}",
            ) from error


def check_cache_folder(config: RunConfig) -> None:
    """Raise if features can't be cached where `machine.cache_folder` says.

    Raises:
        ConfigError: it is no folder, or none that can be written to, nor made.
    """
    if config.machine.cache_vision != "disk" or config.machine.cache_folder is None:
        return
    place = there = user_path(config.machine.cache_folder).absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(
            f"machine.cache_folder {shown(str(place))} can't be written to",
            "a folder that you may write to, or that can be made",
            "choose another machine.cache_folder",
        )


def check_adapter(folder: Path, model_path: str) -> None:
    """Raise if `folder` holds an adapter of another base than the run's model: no comparison with that would hold.

    The same weights in another place are no other base.

    Raises:
        ModelError: it does.
    """
    from striate.models.io.adapter_folder import ADAPTER_CONFIG, base_of, is_adapter

    if not is_adapter(folder):
        return
    named, own = base_of(folder), model_path
    places = [user_path(named), user_path(own)]
    if named == own or (all(place.exists() for place in places) and _same(*places)):
        return
    raise ModelError(
        f"the adapter in {folder} names the base model {shown(named)}, and the run's model is {shown(own)}",
        "an adapter of the run's own model, or a whole model",
        f"check base_model_name_or_path in {folder / ADAPTER_CONFIG}, or merge the adapter into its base and give that",
    )


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve() or fingerprint(one) == fingerprint(other)


def check_region(config: RunConfig, region: Region) -> None:
    """Raise if `train` or healing could not open, or `prune` not remove, the layers that they are asked to.

    Raises:
        StriateError: they could not.
    """
    from striate.stages.prune import check_removal
    from striate.training.preflight_checks import check_layers

    check_layers(region, config.train)
    most = removal_of(config.prune, region)
    check_removal(region, most)
    for healed in layers_ahead(config, region, most) if config.heals else ():
        check_layers(healed, config.heal.training(config.train))
    _check_computing(config, region, most)


def _check_computing(config: RunConfig, region: Region, most: int) -> None:
    """Raise if all layers are to heal where some that stay compute no image tokens."""
    from striate.training.image_layers import visual_compute

    if not config.heals or config.heal.region != "all" or config.train.image_tokens != "region":
        return
    compute = visual_compute(region, config.train)
    if compute and len(compute.layers) < region.num_layers - most:
        raise TrainingError(
            "heal.region 'all' has layers that compute no image tokens (train.image_tokens is region)",
            "layers that compute image tokens: the region, and those of train.image_also",
            "use heal.region=region",
        )


def check_number_format(config: RunConfig, device: torch.device) -> None:
    """Raise if weights in the number format of `machine.dtype` do not train on `device`.

    Raises:
        StriateError: they don't, or there is no such format.
    """
    from striate.models.io.devices import resolve_dtype
    from striate.training.preflight_checks import check_format

    if config.machine.dtype != "auto" and config.train.method != "qlora":
        check_format(resolve_dtype(config.machine.dtype, device), device)


def num_layers_of(model_path: str) -> int:
    """Return how many decoder layers the model at `model_path`, a folder or hub id, has: from its config alone.

    Raises:
        ModelError: no such model, or not an LVLM.
    """
    from striate.models.io.adapter_folder import base_of, is_adapter
    from striate.models.structure.meta_model import blueprint

    folder = Path(model_path)
    return blueprint(base_of(folder) if is_adapter(folder) else model_path).anatomy.num_layers


def check_parts(config: RunConfig, model_path: str) -> None:
    """Raise if what shall train, by name, is no part of the model; its weights are not read.

    Raises:
        StriateError: it is not.
    """
    section = config.train
    named = (section.lora.modules, section.lora.rank_pattern, section.lora.alpha_pattern, section.projector)
    adapted = section.method != "full" and (named[:3] != ("all", {}, {}) or section.projector == "lora")
    if not adapted and section.vision == "frozen":
        return
    from striate.models.structure.meta_model import blueprint
    from striate.training.what_trains import adapters_of, beside_of

    plan = blueprint(model_path, config.model.revision)
    depth = plan.anatomy.num_layers
    if section.method == "full":
        beside_of(plan.model, section)
        return
    adapters_of(plan.model, Region(layers=tuple(range(depth)), num_layers=depth, spec="all"), section)


def prompts_fit(config: RunConfig, model_path: str, packs: Sequence[Pack], *, fetches: bool = True) -> Iterator[str]:
    """Yield, of each model that is asked the packs, into how many tokens their items fit.

    Of models of the hub config and processor are fetched, if `fetches`; otherwise these models are left out.

    Raises:
        StriateError: an item is too long for one of them, or its config or processor can't be used.
    """
    from striate.data.pictures import PictureLimits
    from striate.models.io.adapter_folder import base_of, is_adapter
    from striate.models.io.load import load_processor, read_config
    from striate.tasks.inference.item_lengths import check_items

    items, section = [item for pack in packs for item in pack.items], config.evaluate
    for path in dict.fromkeys((model_path, *section.others.values())):
        folder = user_path(path)
        there, revision = folder.is_dir(), config.model.revision if path == model_path else None
        if there or (fetches and path != BUILTIN):
            place = folder if there else path
            described = read_config(base_of(folder) if there and is_adapter(folder) else place, revision)
            limits, processor = PictureLimits.of(config.machine), load_processor(place, revision=revision)
            most = check_items(processor, described, items, section.max_new_tokens, limits)
            yield f"{len(items)} items fit into the {most} tokens of {path}"
