"""Checkpoints to go on from: whole or not counted, and only of the same training."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from striate.errors import ArtifactError, StriateError, TrainingError, first_line
from striate.storage.atomic import cannot_write, write_text
from striate.storage.held_folders import check_held
from striate.storage.manifest import read_manifest, write_manifest
from striate.training.checkpointing.resume_identity import Identity, Progressed
from striate.training.checkpointing.trained_weights import WEIGHTS
from striate.training.distributed.ranks import Ranks
from striate.training.metrics.metrics_log import dump_rows, parse_rows, read_rows

COMPLETE = "complete.json"
LOG, SAMPLES, LONGEST, BEST = "train_log.jsonl", "samples.txt", "longest", "best.safetensors"
KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint.

    Attributes:
        folder: where it lies.
        progressed: how far the training had come.
        rows: the log of its steps.
        proof: of what trains.
    """

    folder: Path
    progressed: Progressed
    rows: list[dict[str, Any]]
    proof: str

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self.progressed.step


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one training.

    Attributes:
        work_dir: where they lie, in folders called checkpoint-STEP.
        identity: what the training follows from.
        saves: whether any are written.
    """

    work_dir: Path
    identity: Identity
    saves: bool = True

    def folder(self, step: int) -> Path:
        """Return the folder of the checkpoint after `step` steps."""
        return self.work_dir / f"checkpoint-{step}"

    def find(self, log: Path, overwrite: bool, say: Callable[[str], None]) -> Checkpoint | None:
        """Return the newest whole checkpoint, or None; folders of interrupted saves are removed.

        A damaged one is named, and the one before it is taken. One of another training is refused, or with `overwrite`
        removed with all others. `log` is where checkpoints of earlier versions have their log.

        Raises:
            TrainingError: no checkpoint is whole, or they are of another training.
            ArtifactError: the log of a checkpoint of an earlier version lacks steps, or no folder can be in its place.
        """
        self._check_place(overwrite)
        folders = self._folders()
        if not folders:
            return None
        found, damaged = _newest_whole(folders, log)
        refused: StriateError | None = None
        if found is None:
            refused = _none_whole(self.work_dir, damaged)
        elif changed := self.identity.differences(found.progressed):
            refused = _of_another(found.folder, changed)
        if refused and not overwrite:
            raise refused
        if found is None or refused:
            say(f"training begins anew: {refused.given if refused else ''}")
            self.remove()
            return None
        for folder, reason in damaged.items():
            say(f"{reason}: that checkpoint is left out, {found.folder.name} is taken")
            shutil.rmtree(folder, ignore_errors=True)
        processes = len(list(found.folder.glob("rng_state*")))
        if processes != Ranks.launched().world_size:
            say(f"{found.folder.name} was written by {processes} processes: dropout goes on with other random numbers")
        if changes := self.identity.later_changes(found.progressed):
            say(f"{changes} samples changed that no step has learned from yet")
        return found

    @contextmanager
    def writing(self, step: int) -> Iterator[None]:
        """Context in which the checkpoint after `step` steps is written; after an error nothing of it is left.

        Raises:
            ArtifactError: it can't be written: the disk is full, a file may not be as large, or the run folder is gone.
        """
        folder = self.folder(step)
        check_held(folder)
        try:
            yield
        except (OSError, SafetensorError, RuntimeError) as error:
            # torch has no class of its own for a file that can't be written.
            if type(error) is RuntimeError and not any(word in str(error) for word in ("inline_container", "iostream")):
                raise
            shutil.rmtree(folder, ignore_errors=True)
            raise self._cannot_write(folder, error) from error
        except StriateError:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def complete(self, step: int, rows: list[dict[str, Any]], proof: str, longest: int | None) -> None:
        """Make the checkpoint after `step` steps count, by writing its manifest; of those before it one is kept."""
        folder = self.folder(step)
        write_text(folder / LOG, dump_rows(rows))
        write_text(folder / SAMPLES, "".join(f"{digest}\n" for digest in self.identity.samples))
        write_manifest(folder / COMPLETE, {**self.identity.facts, "proof": proof, LONGEST: longest})
        for earlier in list(self._folders().values())[KEPT:]:
            shutil.rmtree(earlier, ignore_errors=True)

    @property
    def best(self) -> Path:
        """Where the weights of the best measurement so far lie, between checkpoints."""
        return self.work_dir / "best"

    def emptied_best(self) -> Path:
        """Return the folder `best` with nothing in it: what was there may be part of checkpoints."""
        if Ranks.launched().is_main:
            shutil.rmtree(self.best, ignore_errors=True)
        return self.best

    def add_best(self, step: int) -> None:
        """Add the best weights so far, if any, to the checkpoint after `step` steps."""
        if (self.best / WEIGHTS).is_file():
            _link(self.best / WEIGHTS, self.folder(step) / BEST)

    def restore_best(self, checkpoint: Checkpoint | None) -> None:
        """Put into `best` what the checkpoint holds, or nothing: steps after it will be made again."""
        best = self.emptied_best()
        if checkpoint and (checkpoint.folder / BEST).is_file():
            best.mkdir(parents=True)
            _link(checkpoint.folder / BEST, best / WEIGHTS)

    def remove(self) -> None:
        """Remove all checkpoints, and the work folder itself if nothing else is in it."""
        remove_checkpoints(self.work_dir)

    def _check_place(self, overwrite: bool) -> None:
        """Return if checkpoints can be in the work folder; with `overwrite` a file or a dead link there is removed.

        Raises:
            ArtifactError: they can't.
        """
        place = self.work_dir
        if place.is_dir() or not (place.is_symlink() or place.exists()):
            return
        if not overwrite:
            raise ArtifactError(
                f"{place} is no folder",
                "a folder of checkpoints, or nothing",
                "move it away, or use --overwrite to remove it",
            )
        place.unlink()

    def _folders(self) -> dict[int, Path]:
        """Return the checkpoints that count, newest first; what interrupted saves left is removed."""
        found: dict[int, Path] = {}
        for folder in self.work_dir.glob("checkpoint-*"):
            number = folder.name.partition("-")[2]
            if number.isdecimal() and (folder / COMPLETE).is_file():
                found[int(number)] = folder
            else:
                shutil.rmtree(folder, ignore_errors=True)
        return dict(sorted(found.items(), reverse=True))

    def _cannot_write(self, folder: Path, error: Exception) -> ArtifactError:
        reason = error if isinstance(error, OSError) else OSError(first_line(error)[:200])
        if isinstance(error, RuntimeError):
            reason = OSError("torch can't write the whole of a file, which is so when the disk is full")
        kept = next((f"goes on from {one.name}" for one in self._folders().values()), "begins again")
        plain = cannot_write(folder, reason)
        return ArtifactError(plain.given, plain.allowed, f"free some space: the same command then {kept}")


def remove_checkpoints(work_dir: Path) -> None:
    """Remove all checkpoints in `work_dir`, and the folder itself if nothing else is in it."""
    for folder in (*work_dir.glob("checkpoint-*"), work_dir / "best"):
        shutil.rmtree(folder, ignore_errors=True)
    if work_dir.is_dir() and not any(work_dir.iterdir()):
        work_dir.rmdir()


def _link(source: Path, target: Path) -> None:
    """Let `target` be `source`'s content: a second name of it where the file system has such, else a copy."""
    try:
        target.hardlink_to(source)
    except (OSError, NotImplementedError):
        shutil.copyfile(source, target)


def _newest_whole(folders: dict[int, Path], log: Path) -> tuple[Checkpoint | None, dict[Path, str]]:
    """Return the newest whole checkpoint, and why the newer ones are not."""
    damaged: dict[Path, str] = {}
    for step, folder in folders.items():
        try:
            return _read(folder, step, log), damaged
        except ArtifactError as error:
            damaged[folder] = error.given.replace(f"{folder.parent}{os.sep}", "")
    return None, damaged


def _read(folder: Path, step: int, log: Path) -> Checkpoint:
    """Return the checkpoint in `folder`.

    Raises:
        ArtifactError: a file of it is missing or damaged.
    """
    facts = read_manifest(folder / COMPLETE)
    proof, longest = facts.pop("proof", ""), facts.pop(LONGEST, None)
    if (folder / SAMPLES).is_file():
        rows = parse_rows((folder / LOG).read_text(encoding="utf-8"), folder / LOG, step)
        samples = (folder / SAMPLES).read_text(encoding="ascii").splitlines()
    else:
        _check_readable(folder, sharded=bool(facts.get("sharding")))
        rows, samples = read_rows(log, step), None
    skipped = frozenset(sample for row in rows for sample in row.get("skipped", ()))
    return Checkpoint(folder, Progressed(step, facts, samples, longest, skipped), rows, proof)


def _check_readable(folder: Path, sharded: bool) -> None:
    """Check what can be checked of a checkpoint that has no digests, since an earlier version made it.

    Raises:
        ArtifactError: a file that every checkpoint has is missing, or one can't be read.
    """
    random_states = list(folder.glob("rng_state*")) or [folder / "rng_state.pth"]
    states = folder.glob("*.pt") if sharded else (folder / name for name in (OPTIMIZER_NAME, SCHEDULER_NAME))
    for file in (folder / WEIGHTS, folder / TRAINER_STATE_NAME, *random_states, *states):
        try:
            if file.suffix == ".safetensors":
                load_file(str(file))
            elif file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
            elif ZipFile(file).testzip():
                raise BadZipFile("its checksum is another")
        except (OSError, ValueError, SafetensorError, BadZipFile) as error:
            reason = getattr(error, "strerror", None) or first_line(error)[:200]
            raise ArtifactError(f"{file} can't be read: {reason}") from error


def _none_whole(work_dir: Path, damaged: dict[Path, str]) -> TrainingError:
    return TrainingError(
        f"no checkpoint in {work_dir} is whole: {'; '.join(damaged.values())}",
        "files as striate wrote them",
        "restore them, or use --overwrite to begin the training anew",
    )


def _of_another(folder: Path, changed: list[str]) -> TrainingError:
    return TrainingError(
        f"{folder} is of another training run: {', '.join(changed)} changed",
        "going on with the settings, region, data and seed that training began with",
        "restore them, or use --overwrite to begin the training anew",
    )
