"""Runs of earlier versions: what their stages followed from, and how it is noted today."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from striate.errors import StriateError
from striate.harness.suites import parse_suite
from striate.pipeline.preflight import labels_of
from striate.pipeline.stage_keys import StageKeys
from striate.storage.fingerprints import EARLIER_LENGTH, earlier_fingerprint, fingerprint_of
from striate.tasks.packs.sources import Source, earlier_release_fingerprint


class EarlierKeys(StageKeys):
    """What stages followed from before: whole folders with all that lies in them, and a sample of large files."""

    def _output(self, stage: str, name: str, inputs: Callable[[], Mapping[str, Any]]) -> str:
        return earlier_fingerprint(self.run.path / name)

    def _of_model(self, path: Path) -> str:
        return earlier_fingerprint(path)

    def _of_data(self, path: Path) -> str:
        return earlier_fingerprint(path)

    def _of_folder(self, folder: Path) -> str:
        return earlier_fingerprint(folder)

    def _of_pack(self, number: int, source: Source, folder: Path) -> str:
        return earlier_release_fingerprint(folder) if source.benchmark else earlier_fingerprint(folder)

    def _note(self, label: str, value: str) -> None:
        """Note nothing: today's fingerprints stand in the record."""


def adopt_earlier_stages(keys: StageKeys) -> None:
    """Note the stages of a run of an earlier version as today's: those that still follow from what they were made of.

    The others stay as they are, out of date.
    """
    old = {name: stage.key for name, stage in keys.run.record.stages.items() if len(stage.key) == EARLIER_LENGTH}
    if not old:
        return
    earlier = dict(_inputs(EarlierKeys(keys.run, keys.inputs, keys.read_packs)))
    for name, inputs in _inputs(keys):
        with suppress(StriateError):
            if name in old and fingerprint_of(earlier[name]())[:EARLIER_LENGTH] == old[name]:
                keys.run.adopt(name, inputs())


def _inputs(keys: StageKeys) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield every stage of the run with what returns its inputs, each after those that it follows from."""
    yield from (("analyze", keys.analyze), ("select", keys.select), ("train", keys.train), ("prune", keys.prune))
    suites = [parse_suite(text) for text in keys.run.config.evaluate.suites]
    for label in labels_of(keys.run.config):
        yield f"evaluate:{label}", partial(keys.evaluate, label)
        for suite in suites:
            yield f"suite:{label}.{suite.slug}", partial(keys.suite, label, suite)
