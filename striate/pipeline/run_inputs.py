"""Locate a run's model, data and test packs, fetching what is built in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from striate.config import RunConfig
from striate.demo.places import locate_data, locate_model, locate_pack
from striate.errors import ConfigError
from striate.pipeline.preflight import labels_of
from striate.progress import Progress

if TYPE_CHECKING:
    from striate.tasks.packs.sources import Source


@dataclass(frozen=True)
class RunInputs:
    """The places of everything that a run reads.

    Attributes:
        model: folder or hub id of the model that the run begins with.
        train: training files or folders.
        calibration: what scorers read; empty for the training data.
        packs: where test items come from.
        base: folder of the untuned checkpoint that scorers compare with, if there is one.
    """

    model: str
    train: tuple[Path, ...]
    calibration: tuple[Path, ...] = ()
    packs: tuple[Source, ...] = ()
    base: str | None = None


def locate_inputs(config: RunConfig, progress: Progress) -> RunInputs:
    """Return where the inputs of `config` are; a gate is held against the test items.

    Raises:
        ConfigError: the gate can't be read, or names something that will not be measured; or `analyze.base` is no
            folder.
        StriateError: something built in can't be fetched, a pack is not there, or, with a gate, can't be read.
    """
    return RunInputs(
        model=locate_model(config.model.path, progress),
        train=tuple(locate_data(name, progress) for name in config.data.train),
        calibration=tuple(locate_data(name, progress) for name in config.data.calibration),
        packs=tuple(_locate_packs(config, progress)),
        base=_locate_base(config, progress),
    )


def _locate_packs(config: RunConfig, progress: Progress) -> list[Source]:
    section = config.evaluate
    sources = [locate_pack(name, progress) for name in section.packs]
    if section.gate:
        from striate.tasks.packs.sources import read_source
        from striate.tasks.scoring.gate import check_gate, parse_gate

        parse_gate(section.gate)
        check_gate(section.gate, [read_source(source, section.limit) for source in sources], labels_of(config))
    return sources


def _locate_base(config: RunConfig, progress: Progress) -> str | None:
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
