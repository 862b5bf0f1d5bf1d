"""Locate a run's model, data and test packs, fetching what is built in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from striate.config import BUILTIN, RunConfig, looks_like_hub_id
from striate.data.sources.source_options import PLAIN, SourceOptions
from striate.demo.places import locate_data, locate_model, locate_pack
from striate.errors import ConfigError, ModelError
from striate.pipeline.preflight import labels_of
from striate.progress import Progress, warn
from striate.storage.read_files import user_path

if TYPE_CHECKING:
    from striate.data.samples import Sample
    from striate.tasks.packs.sources import Source

MODEL_CONFIGS = ("config.json", "adapter_config.json")


@dataclass(frozen=True)
class RunInputs:
    """The places of everything that a run reads.

    Attributes:
        model: folder or hub id of the model that the run begins with.
        train: training files or folders.
        calibration: what scorers read; empty for the training data.
        packs: where test items come from.
        heal_text: more samples without pictures that heal.
        until_packs: where those come from by which `prune.until` chooses, if they are others.
        base: folder of the untuned checkpoint that scorers compare with, if there is one.
        validate: file or folder of held-out samples, where the config names one.
        options: how the samples of all of these are read.
    """

    model: str
    train: tuple[Path, ...]
    calibration: tuple[Path, ...] = ()
    packs: tuple[Source, ...] = ()
    until_packs: tuple[Source, ...] = ()
    base: str | None = None
    validate: Path | None = None
    heal_text: tuple[Path, ...] = ()
    options: SourceOptions = PLAIN

    @property
    def calibrating(self) -> tuple[Path, ...]:
        """The calibration set's files or folders: the training data where none are named."""
        return self.calibration or self.train


def locate_inputs(config: RunConfig, progress: Progress) -> RunInputs:
    """Return where the inputs of `config` are; a gate is held against the test items.

    Raises:
        ConfigError: the gate can't be read, or names something that will not be measured; or `analyze.base` is no
            folder.
        StriateError: something built in can't be fetched, a pack is not there, or, with a gate, can't be read.
    """
    for path in config.evaluate.others.values():
        check_model_path(path, "evaluate.others")
    validate = None if config.data.validation_share else config.data.validate
    return RunInputs(
        model=locate_model(config.model.path, progress),
        train=tuple(locate_data(name, progress) for name in config.data.train),
        calibration=tuple(locate_data(name, progress) for name in config.data.calibration),
        packs=tuple(_locate_packs(config, progress)),
        until_packs=tuple(_locate_until(config, progress)),
        base=locate_base(config, progress),
        validate=locate_data(validate, progress) if validate else None,
        heal_text=tuple(locate_data(name, progress) for name in config.heal.text_data) if config.heal.on else (),
        options=SourceOptions.of(config.data),
    )


def check_model_path(path: str, setting: str) -> None:
    """Check that the model at `path` may be one: a folder with a config; anything else is taken for an id of the hub.

    Raises:
        ModelError: it is neither.
    """
    folder = user_path(path)
    if path != BUILTIN and folder.is_dir() and not any((folder / name).is_file() for name in MODEL_CONFIGS):
        raise ModelError(
            f"{path} has no config.json",
            "a folder with config.json or adapter_config.json",
            "give the folder that `save_pretrained` wrote",
        )
    if path != BUILTIN and not folder.is_dir() and not looks_like_hub_id(path):
        raise ModelError(
            f"no model at {path!r}", "a folder, a hub id such as owner/name, or builtin", f"check {setting}"
        )


def _locate_packs(config: RunConfig, progress: Progress) -> list[Source]:
    from striate.tasks.packs.sources import check_pack_names

    section = config.evaluate
    sources = _located(section.packs, config, progress)
    check_pack_names([source.name for source in sources])
    if section.gate:
        from striate.pipeline.references import check_references
        from striate.tasks.packs.sources import read_source
        from striate.tasks.scoring.gate import check_gate

        check_references(config)
        check_gate(
            section.gate,
            [read_source(source, section.limit) for source in sources],
            labels_of(config),
            section.baseline,
            floor=section.floor,
        )
    return sources


def _located(names: Sequence[str], config: RunConfig, progress: Progress) -> list[Source]:
    """Return where the test items called `names` come from, and their pictures."""
    images = SourceOptions.of(config.data).images
    return [replace(locate_pack(name, progress), images=images) for name in names]


def _locate_until(config: RunConfig, progress: Progress) -> list[Source]:
    """Return where the items come from by which `prune.until` chooses, if they are others than those of the test."""
    section = config.prune
    if not section.until:
        return []
    from striate.pipeline.trials.until_gate import check_until
    from striate.tasks.packs.sources import check_pack_names, read_source

    names = section.until_packs or config.evaluate.packs
    sources = _located(names, config, progress)
    check_pack_names([source.name for source in sources])
    check_until(section.until, [read_source(source, config.evaluate.limit) for source in sources])
    return sources if section.until_packs else []


def locate_base(config: RunConfig, progress: Progress) -> str | None:
    """Return the folder of the untuned checkpoint, if scorers compare with one.

    Raises:
        ConfigError: a scorer does, and there is none.
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


def usable_calibration(
    stage: str, samples: Sequence[Sample], processor: Any, config: RunConfig, progress: Progress
) -> list[Sample]:
    """Return the calibration samples that a stage can use, as training leaves out what it can't; says how many it lost.

    Raises:
        DataError: none is left of those that `data.broken` lets be left out.
    """
    from striate.data.checks.broken_samples import usable
    from striate.data.collate import Collator
    from striate.data.pictures import PictureLimits

    skips, limits = config.data.broken == "skip", PictureLimits.of(config.machine)
    left = usable(Collator(processor, config.train.max_length, True, limits, skips), samples)
    if lost := len(samples) - len(left):
        warn(progress, f"{stage}: {lost} of {len(samples)} calibration samples can't be used")
    return left
