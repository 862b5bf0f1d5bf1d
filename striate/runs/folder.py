"""The run folder: one unit of work on disk, and the record of what made it."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from striate.artifacts import read_document, write_document
from striate.config import RunConfig, dump_config, load_config
from striate.errors import ArtifactError, StriateError
from striate.progress import Progress
from striate.runs.config_changes import check_same_config
from striate.runs.former_defaults import began_with
from striate.runs.peak_memory import begin_stage_peak, stage_peak_gib
from striate.runs.run_record import RunRecord, StageRecord
from striate.storage.atomic import cannot_write, is_temporary, remove_temporaries, write_bytes, write_text
from striate.storage.fingerprints import earlier_fingerprint, fingerprint, fingerprint_of
from striate.storage.held_folders import hold

RUN_FILE, CONFIG_FILE = "run.json", "config.yaml"
# Of stages that have none of their own name.
_VERBS = {"heal": "prune"}


@dataclass(frozen=True)
class Stage:
    """One stage of a run, entered.

    Attributes:
        key: the hash of its inputs.
        stale: whether its outputs are still to be made.
        restored: whether they were put right from what one of them holds.
    """

    key: str
    stale: bool
    restored: bool = False


Restore = Callable[[str], float | None]
"""Puts outputs of a stage, whose key it is given, right; returns the seconds that they took to make, or None."""


class RunFolder:
    """One run on disk: its config, its record, and which stages are up to date."""

    def __init__(
        self,
        path: Path,
        config: RunConfig,
        record: RunRecord,
        progress: Progress,
        holder: object,
        device: Callable[[], str],
    ) -> None:
        """Use `open_run` instead: it checks what is already there, and holds the folder by `holder`."""
        self._holder, self._device = holder, device
        self.path = path
        self.config = config
        self.record = record
        self.progress = progress
        self.overwrite = False

    @contextmanager
    def stage(
        self,
        name: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str],
        unfinished: Sequence[str] = (),
        restore: Restore | None = None,
    ) -> Iterator[Stage]:
        """Context of stage `name`, whose body writes the `outputs` where the stage is stale; records how it ended.

        A stage is up to date that already ran on the same `inputs` and whose `outputs` (paths relative to the run
        folder) are whole, or that `restore` can put right. Outputs of an earlier config are removed first, and only
        when the run was opened with `overwrite`; with a `restore` the first output is never removed otherwise. What
        the body resumes from after an interruption is named in `unfinished`, and is removed only when the inputs have
        changed. Time and peak memory are those of the body.

        Raises:
            ArtifactError: outputs are there that other inputs made, and nothing may be overwritten.
        """
        key = fingerprint_of(inputs)
        old = self.record.stages.get(name)
        if old and old.status == "done" and old.key == key and self._whole(old, outputs):
            self.progress.say(f"{name}: up to date")
            yield Stage(key, stale=False)
            return
        begin = time.perf_counter()
        seconds = restore(key) if restore else None
        if seconds is not None:
            self._note_done(name, key, begin - seconds, outputs)
            yield Stage(key, stale=False, restored=True)
            return
        again = bool(old and old.key == key)
        removed = [output for output in outputs if output not in unfinished]
        self._clear(name, removed, again, costly=outputs[:1] if restore else ())
        if old and not again and self.overwrite:
            self._remove(unfinished)
        self.record = self.record.model_copy(update={"device": self._device()})
        begin_stage_peak(self.record.device)
        try:
            yield Stage(key, stale=True)
        except BaseException:
            self._note(name, "failed", key, begin, {})
            raise
        self._note_done(name, key, begin, outputs)

    def output(self, stage: str, name: str, inputs: Mapping[str, Any]) -> str:
        """Return the fingerprint of an output that `stage` wrote from `inputs`, for the inputs of later stages.

        Raises:
            ArtifactError: the stage has not run yet, or on other inputs; its output is gone, or was changed since.
        """
        record = self.record.stages.get(stage)
        verb = _VERBS.get(stage, stage.partition(":")[0])
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

    def adopt(self, stage: str, inputs: Mapping[str, Any]) -> None:
        """Note a stage of an earlier version, which ran on `inputs`, with its key and whole outputs as of today."""
        old = self.record.stages[stage]
        outputs = {
            name: fingerprint(self.path / name) if self._is_earlier(name, noted) else noted
            for name, noted in old.outputs.items()
        }
        self._put(stage, old.model_copy(update={"key": fingerprint_of(inputs), "outputs": outputs}))

    def _is_earlier(self, output: str, noted: str) -> bool:
        return (self.path / output).exists() and earlier_fingerprint(self.path / output) == noted

    def take_over(self, stage: str, source: Path, record: StageRecord) -> None:
        """Copy the outputs of `stage`, whose `record` is given, from another run folder, and note them as this one's.

        Raises:
            ArtifactError: one is gone there, is not what was noted, or can't be written here.
        """
        for name, noted in record.outputs.items():
            theirs, own = source / name, self.path / name
            if not theirs.is_file() or fingerprint(theirs) != noted:
                raise _changed(theirs, stage)
            own.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(own, theirs.read_bytes())
        self._put(stage, record)

    def rename_output(self, stage: str, old: str, new: str) -> None:
        """Let an output of `stage`, which is done, have another name; what has that name is removed.

        Raises:
            ArtifactError: it can't be moved.
        """
        if (self.path / old).exists():
            self._remove([new])
            try:
                (self.path / old).rename(self.path / new)
            except OSError as error:
                raise cannot_write(self.path / new, error) from error
        record = self.record.stages[stage]
        outputs = {new if name == old else name: digest for name, digest in record.outputs.items()}
        self._put(stage, record.model_copy(update={"outputs": outputs}))

    def forget(self, stage: str, outputs: Sequence[str]) -> None:
        """Remove the `outputs` of `stage`, and that it ever ran.

        Raises:
            ArtifactError: one can't be removed.
        """
        self._remove(outputs)
        stages = {name: record for name, record in self.record.stages.items() if name != stage}
        self.record = self.record.model_copy(update={"stages": stages})
        self._save()

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

    def _clear(self, name: str, outputs: Sequence[str], again: bool, costly: Sequence[str]) -> None:
        """Remove outputs that are out of date, or damaged (`again`: the inputs are the same), if that is allowed.

        Those that are `costly` are not removed either where nothing tells what they were made from.
        """
        there = [output for output in outputs if (self.path / output).exists()]
        old = self.record.stages.get(name)
        if old and old.status == "done" and not self.overwrite:
            changed = [output for output in there if fingerprint(self.path / output) != old.outputs.get(output)]
            if again and changed:
                raise _changed(self.path / changed[0], name)
            if there and not again:
                hint = "use --overwrite to do this stage again, or another --out"
                raise _out_of_date(self.path / there[0], name, hint)
        for output in set(costly) & set(there) if not self.overwrite else ():
            raise _without_record(self.path / output, name)
        self._remove(there)

    def _remove(self, names: Sequence[str]) -> None:
        for path in (self.path / name for name in names):
            try:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            except OSError as error:
                raise cannot_write(path, error) from error

    def _note_done(self, name: str, key: str, begin: float, outputs: Sequence[str]) -> None:
        self._note(name, "done", key, begin, {output: fingerprint(self.path / output) for output in outputs})

    def _note(
        self, name: str, status: Literal["done", "failed"], key: str, begin: float, outputs: dict[str, str]
    ) -> None:
        stage = StageRecord(
            status=status,
            seconds=time.perf_counter() - begin,
            peak_memory_gib=stage_peak_gib(self.record.device) if status == "done" else 0,
            key=key,
            outputs=outputs,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self._put(name, stage)

    def _put(self, stage: str, record: StageRecord) -> None:
        """Keep the record of a stage."""
        self.record = self.record.model_copy(update={"stages": {**self.record.stages, stage: record}})
        self._save()

    def _save(self) -> None:
        write_document(self.path / RUN_FILE, self.record)


def open_run(
    path: Path,
    config: RunConfig,
    progress: Progress,
    *,
    command: str,
    device: Callable[[], str],
    overwrite: bool = False,
    kept: RunConfig | None = None,
) -> RunFolder:
    """Return the run folder at `path`, new or continued, held for this process as long as it is used.

    The record has the `device` of the last stage that ran; of a folder where none has, that of this machine. The
    folder keeps the config `kept`: `config` without what counts for one call; left out, all of it is kept.

    Raises:
        ArtifactError: the folder holds a run of another config (unless `overwrite`), holds other files, can't be
            written, or another process works in it.
    """
    # Held before anything in it is read: of two processes that begin one new folder, the second is refused.
    _make(path)
    holder = _Holder()
    alone = hold(path, holder)
    old = _record_at(path)
    if alone:
        remove_temporaries(path)
    # Where no stage has ended yet nothing follows from the config: a corrected one may continue.
    if old and any(stage.status == "done" for stage in old.stages.values()):
        check_same_config(path, began_with(path / CONFIG_FILE), config, overwrite)
    stages, fingerprints = (old.stages, old.fingerprints) if old else ({}, {})
    record = RunRecord.of_this_machine(config.seed, old.device if old else device(), command, stages, fingerprints)
    run = RunFolder(path, config, record, progress, holder, device)
    run.overwrite = overwrite
    # The record first: it is what makes a folder one of striate, from the first file on.
    run._save()
    write_text(path / CONFIG_FILE, dump_config(kept or config))
    return run


class _Holder:
    """What a run folder is held by, for as long as its `RunFolder` lives."""


def _make(path: Path) -> None:
    """Make the folder, if there is nothing yet.

    Raises:
        ArtifactError: it can't be made, or is a file.
    """
    try:
        if not path.exists() or path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            return
    except OSError as error:
        raise cannot_write(path, error) from error
    raise _no_run(path)


def _record_at(path: Path) -> RunRecord | None:
    """Return the record of the run folder at `path`; None where it is empty, or a kill left it before its record.

    Raises:
        ArtifactError: the folder holds other files, or may not be read.
    """
    try:
        if (path / RUN_FILE).exists():
            return read_document(path / RUN_FILE, RunRecord)
        names = [inside.name for inside in path.iterdir() if not is_temporary(inside)]
    except OSError as error:
        raise cannot_write(path, error) from error
    if names and not (names == [CONFIG_FILE] and _is_resolved(path / CONFIG_FILE)):
        raise _no_run(path)
    return None


def _is_resolved(path: Path) -> bool:
    """Return whether `path` holds a config as striate writes it, and no person's own."""
    try:
        return path.read_text(encoding="utf-8") == dump_config(load_config(path))
    except (StriateError, OSError, ValueError):
        return False


def _no_run(path: Path) -> ArtifactError:
    return ArtifactError(
        f"{path} exists and is no run folder",
        "a new or empty folder, or one that striate made",
        "choose another --out",
    )


def _out_of_date(path: Path, stage: str, next_step: str) -> ArtifactError:
    return ArtifactError(
        f"{path} was made from other inputs than {stage} has now",
        "a run folder whose stages follow from each other",
        next_step,
    )


def _without_record(path: Path, stage: str) -> ArtifactError:
    return ArtifactError(
        f"{path} is there, and what tells that {stage} made it from these inputs is missing or changed",
        "outputs with their record, or none",
        f"restore what is missing, move {path.name} away, or use --overwrite to do the stage again",
    )


def _changed(path: Path, stage: str) -> ArtifactError:
    return ArtifactError(
        f"{path} was changed after {stage} wrote it",
        "artifacts as striate wrote them",
        "remove it or use --overwrite to do the stage again; a region of your own is given as select.region=PATH",
    )
