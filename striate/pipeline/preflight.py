"""What a run is refused for before it writes anything, or before a stage computes for hours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from striate.artifacts import Region
from striate.config import RunConfig
from striate.demo.places import locate_model, locate_pack
from striate.errors import ConfigError, ModelError
from striate.progress import Progress
from striate.selectors.spec.extra_visual_layers import with_image_layers

if TYPE_CHECKING:
    from striate.tasks.packs.sources import Source


def labels_of(config: RunConfig) -> list[str]:
    """Return the names of the models that are evaluated: the run's own, then others."""
    own = [label for label in config.evaluate.models if label != "pruned" or config.prune.remove]
    return [*own, *config.evaluate.others]


def find_sources(config: RunConfig, progress: Progress) -> list[Source]:
    """Return where the test items come from; what is built in is fetched.

    Raises:
        ConfigError: the gate can't be read, or names something that will not be measured.
        StriateError: a pack that is not there, or, with a gate, that can't be read.
    """
    section = config.evaluate
    sources = [locate_pack(name, progress) for name in section.packs]
    if section.gate:
        from striate.tasks.packs.sources import read_source
        from striate.tasks.scoring.gate import check_gate, parse_gate

        parse_gate(section.gate)
        check_gate(section.gate, [read_source(source, section.limit) for source in sources], labels_of(config))
    return sources


def find_base(config: RunConfig, progress: Progress) -> str | None:
    """Return the folder of the untuned checkpoint that scorers compare with, if there is one.

    Raises:
        ConfigError: it is no folder.
    """
    name = config.analyze.base
    if name is None:
        return None
    place = locate_model(name, progress)
    if not Path(place).is_dir():
        raise ConfigError(
            f"analyze.base {name!r} is no folder",
            "the folder of the checkpoint from which the model was tuned",
            "check the path; a model of the hub is to be downloaded first",
        )
    return place


def check_base(config: RunConfig, model_path: str) -> None:
    """Raise if the tuned adapter's base would be an adapter itself: nothing could load the two.

    Raises:
        ModelError: it would.
    """
    from striate.models.io.adapters import is_adapter

    if config.train.method != "full" and is_adapter(Path(model_path)):
        raise ModelError(
            f"{model_path} is an adapter: {config.train.method} can't train on top of it",
            "a model with weights of its own, or train.method=full",
            "merge the adapter into its base first (PEFT's merge_and_unload)",
        )


def check_region(config: RunConfig, region: Region) -> None:
    """Raise if `train` could not open, or `prune` not remove, as many layers as they are asked to.

    Raises:
        StriateError: they could not.
    """
    from striate.stages.prune import check_removal
    from striate.training.lisa import check_resampling

    with_image_layers(region, config.train.image_also)
    check_resampling(region, config.train.resample)
    check_removal(region, config.prune.remove)
