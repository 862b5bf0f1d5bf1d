"""The run folder: one unit of work on disk, and the record of what made it."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from striate.artifacts import Document, read_document, write_document
from striate.config import RunConfig, dump_config, load_config
from striate.errors import ArtifactError
from striate.progress import Progress
from striate.runs.lock import hold
from striate.storage.atomic import cannot_write, write_text
from striate.storage.fingerprints import fingerprint, fingerprint_of
from striate.version import __version__

RUN_FILE, CONFIG_FILE = "run.json", "config.yaml"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "pillow", "pydantic")
# Settings that no artifact of an earlier stage follows from.
FREE = {"machine", "report"} | {f"evaluate.{key}" for key in ("models", "others", "baseline", "gate", "suites")}


class StageRecord(Document):
    """How one stage ended: its cost, the hash of its inputs, the hashes of its outputs."""

    status: Literal["done", "failed"]
    seconds: float
    peak_memory_gib: float
    key: str
    outputs: dict[str, str] = Field(default_factory=dict)
    finished: str


class RunRecord(Document):
    """What made a run folder (`run.json`): versions, machine, seed, command, fingerprints, stages."""

    version: Literal[1] = 1
    striate: str
    versions: dict[str, str]
    python: str
    platform: str
    device: str
    seed: int
    command: str
    fingerprints: dict[str, str]
    stages: dict[str, StageRecord]


class RunFolder:
    """One run on disk: its config, its record, and which stages are up to date."""

    def __init__(self, path: Path, config: RunConfig, record: RunRecord, progress: Progress) -> None:
        """Use `open_run` instead: it checks what is already there."""
        self.path = path
        self.config = config
        self.record = record
        self.progress = progress
        self.overwrite = False

    def stage(
        self,
        name: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str],
        work: Callable[[], float],
        unfinished: Sequence[str] = (),
    ) -> None:
        """Run `work` unless stage `name` already ran on the same `inputs` and its `outputs` are whole; record it.

        `work` writes the outputs (paths relative to the run folder) and returns its peak memory in GiB. Outputs of an
        earlier config go first, and only when the run was opened with `overwrite`. What `work` goes on from after an
        interruption is named in `unfinished`, and goes only when the inputs have changed.

        Raises:
            ArtifactError: outputs are there that other inputs made, and nothing may be overwritten.
        """
        key = fingerprint_of(inputs)
        old = self.record.stages.get(name)
        if old and old.status == "done" and old.key == key and self._whole(old, outputs):
            self.progress.say(f"{name}: up to date")
            return
        again = bool(old and old.key == key)
        self._clear(name, [output for output in outputs if output not in unfinished], again)
        if old and not again and self.overwrite:
            self._remove(unfinished)
        begin = time.perf_counter()
        try:
            peak = work()
        except BaseException:
            self._note(
                name,
                StageRecord(
                    status="failed", seconds=time.perf_counter() - begin, peak_memory_gib=0, key=key, finished=_now()
                ),
            )
            raise
        hashes = {output: fingerprint(self.path / output) for output in outputs}
        self._note(
            name,
            StageRecord(
                status="done",
                seconds=time.perf_counter() - begin,
                peak_memory_gib=peak,
                key=key,
                outputs=hashes,
                finished=_now(),
            ),
        )

    def output(self, stage: str, name: str, inputs: Mapping[str, Any]) -> str:
        """Return the fingerprint of an output that `stage` wrote from `inputs`, for the inputs of later stages.

        Raises:
            ArtifactError: the stage has not run yet, or on other inputs; its output is gone, or was changed since.
        """
        record = self.record.stages.get(stage)
        verb = stage.partition(":")[0]
        if record is None or record.status != "done" or not (self.path / name).exists():
            raise ArtifactError(
                f"{self.path} has no {name} yet",
                f"a run folder where `striate {verb}` has run",
                f"run `striate {verb}` first",
            )
        if record.key != fingerprint_of(inputs):
            raise _out_of_date(self.path / name, stage, f"run `striate {verb} --overwrite` first")
        if fingerprint(self.path / name) != record.outputs[name]:
            raise _changed(self.path / name, stage)
        return record.outputs[name]

    def is_done(self, stage: str, inputs: Mapping[str, Any]) -> bool:
        """Return whether `stage` ran on `inputs` and its outputs are whole."""
        record = self.record.stages.get(stage)
        return bool(
            record
            and record.status == "done"
            and record.key == fingerprint_of(inputs)
            and self._whole(record, list(record.outputs))
        )

    def note_fingerprint(self, name: str, value: str) -> None:
        """Keep the fingerprint of a model or data set in the record."""
        self.record = self.record.model_copy(update={"fingerprints": {**self.record.fingerprints, name: value}})
        self._save()

    def _whole(self, record: StageRecord, outputs: Sequence[str]) -> bool:
        """Return whether every output is there with the hash that was noted."""
        return set(record.outputs) == set(outputs) and all(
            (self.path / output).exists() and fingerprint(self.path / output) == record.outputs[output]
            for output in outputs
        )

    def _clear(self, name: str, outputs: Sequence[str], again: bool) -> None:
        """Remove outputs that are out of date, or damaged (`again`: the inputs are the same), if that is allowed."""
        there = [output for output in outputs if (self.path / output).exists()]
        old = self.record.stages.get(name)
        if old and old.status == "done" and not self.overwrite:
            changed = [output for output in there if fingerprint(self.path / output) != old.outputs.get(output)]
            if again and changed:
                raise _changed(self.path / changed[0], name)
            if there and not again:
                hint = "use --overwrite to do this stage again, or another --out"
                raise _out_of_date(self.path / there[0], name, hint)
        self._remove(there)

    def _remove(self, names: Sequence[str]) -> None:
        """Remove files and folders of the run."""
        for path in (self.path / name for name in names):
            try:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            except OSError as error:
                raise cannot_write(path, error) from error

    def _note(self, name: str, stage: StageRecord) -> None:
        """Add `stage` to the record on disk."""
        self.record = self.record.model_copy(update={"stages": {**self.record.stages, name: stage}})
        self._save()

    def _save(self) -> None:
        """Write run.json."""
        write_document(self.path / RUN_FILE, self.record)


def open_run(
    path: Path, config: RunConfig, progress: Progress, *, command: str, device: str, overwrite: bool = False
) -> RunFolder:
    """Return the run folder at `path`, new or continued, held for this process as long as it is used.

    Raises:
        ArtifactError: the folder holds a run of another config (unless `overwrite`), holds other files, can't be
            written, or another process works in it.
    """
    record_path, config_path = path / RUN_FILE, path / CONFIG_FILE
    if _exists(record_path):
        old = read_document(record_path, RunRecord)
        stages, fingerprints = old.stages, old.fingerprints
        # A folder where nothing has ended yet binds nobody: a mended config goes on in it.
        if any(stage.status == "done" for stage in stages.values()):
            _check_same(path, load_config(config_path), config, overwrite)
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ArtifactError(
            f"{path} exists and is no run folder",
            "a new or empty folder, or one that striate made",
            "choose another --out",
        )
    else:
        stages, fingerprints = {}, {}
    record = RunRecord(
        striate=__version__,
        versions={name: version(name) for name in PACKAGES},
        python=platform.python_version(),
        platform=platform.platform(),
        device=device,
        seed=config.seed,
        command=command,
        fingerprints=fingerprints,
        stages=stages,
    )
    run = RunFolder(path, config, record, progress)
    if path.is_dir():
        hold(path, run)
    write_text(config_path, dump_config(config))
    run.overwrite = overwrite
    run._save()
    return run


def _exists(path: Path) -> bool:
    """Return whether the file or folder exists.

    Raises:
        ArtifactError: its folder may not be read.
    """
    try:
        return path.exists()
    except OSError as error:
        raise cannot_write(path, error) from error


def _out_of_date(path: Path, stage: str, next_step: str) -> ArtifactError:
    """Return the error for an artifact of another config."""
    return ArtifactError(
        f"{path} was made from other inputs than {stage} has now",
        "a run folder whose stages follow from each other",
        next_step,
    )


def _changed(path: Path, stage: str) -> ArtifactError:
    """Return the error for an artifact that is not what its stage wrote."""
    return ArtifactError(
        f"{path} was changed after {stage} wrote it",
        "artifacts as striate wrote them",
        "remove it or use --overwrite to do the stage again; a region of your own is given as select.region=PATH",
    )


def _check_same(path: Path, old: RunConfig, new: RunConfig, overwrite: bool) -> None:
    """Raise when the run folder's science differs from the config, unless it may be overwritten."""
    differences = list(_differences(old.model_dump(), new.model_dump()))
    if differences and not overwrite:
        raise ArtifactError(
            f"{path} holds a run of another config: {'; '.join(differences[:4])}",
            "the same config (machine:, report:, and what evaluate compares may differ)",
            "choose another --out, or use --overwrite to do the stages again that it changes",
        )


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield every setting of the science that differs, as `key: old -> new`."""
    for key in old:
        if f"{prefix}{key}" in FREE:
            continue
        if isinstance(old[key], dict) and isinstance(new[key], dict):
            yield from _differences(old[key], new[key], f"{prefix}{key}.")
        elif old[key] != new[key]:
            yield f"{prefix}{key}: {old[key]} -> {new[key]}"


def _now() -> str:
    """Return the time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
