"""Training on several processes: the first one runs the flow, the others wait and follow it into the training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from striate.artifacts import Region, TrainRecord, read_document
from striate.config import RunConfig
from striate.data.reading import read_many
from striate.progress import Progress, Silent
from striate.stages.train import train
from striate.training.distributed.ranks import Processes

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

WORK_FOLDER = ".training"


@dataclass(frozen=True)
class Job:
    """One training: what every process must know of it."""

    config: RunConfig
    out: Path
    model_path: str
    train_paths: tuple[Path, ...]

    def run(self, loaded: Loaded, progress: Progress) -> TrainRecord:
        """Return how it went; on several processes all of them must run it.

        Raises:
            StriateError: as `striate.stages.train.train`.
        """
        config = self.config
        model: Any = loaded.model
        return train(
            model,
            loaded.processor,
            read_document(self.out / "region.json", Region),
            read_many(self.train_paths, config.data.max_train_samples, config.seed),
            config.train,
            config.machine,
            seed=config.seed,
            out=self.out / "checkpoint",
            work_dir=self.out / WORK_FOLDER,
            log=self.out / "train_log.jsonl",
            base_path=self.model_path,
            progress=progress,
        )


@contextmanager
def leading(device: torch.device) -> Iterator[Callable[[Job], None]]:
    """Yield a function that sends the other processes into a job; where it is never called they go home."""
    processes = Processes.launched()
    processes.join(device)
    told: list[Job] = []

    def tell(job: Job) -> None:
        told.append(job)
        processes.share(job)

    try:
        yield tell
    finally:
        if not told:
            processes.share(None)
    processes.leave()


def follow(config: RunConfig) -> None:
    """Wait for the first process's job, and train with it.

    Raises:
        StriateError: the device, the model or the data can't be used here, or the training fails.
    """
    from striate.models.io.load import resolve_device

    device = resolve_device(config.machine.device)
    processes = Processes.launched()
    processes.join(device)
    job: Job | None = processes.share(None)
    if job is not None:
        _train(job)
    processes.leave()


def _train(job: Job) -> None:
    """Load the job's model on this process's device, and train."""
    from striate.models.io.load import load_model
    from striate.models.io.quantized import load_quantised

    machine, revision = job.config.machine, job.config.model.revision
    if job.config.train.method == "qlora":
        loaded = load_quantised(job.model_path, device=machine.device, revision=revision)
    else:
        loaded = load_model(job.model_path, device=machine.device, dtype=machine.dtype, revision=revision, merge=True)
    job.run(loaded, Silent())
