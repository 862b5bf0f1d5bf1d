"""Training on several processes: rank zero runs the flow, the other ranks wait and join it for the training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from striate.artifacts import PruneRecord, Region, TrainRecord, read_document
from striate.config import RunConfig
from striate.data.held_out import training_data
from striate.models.surgery.renumber import renumbered
from striate.pipeline.model_origins import origin_of
from striate.pipeline.resident_model import ResidentModel, load_for
from striate.pipeline.restore_training import WORK_FOLDER
from striate.progress import Progress, Silent
from striate.training.distributed.ranks import Ranks

if TYPE_CHECKING:
    from striate.models.io.load import Loaded
    from striate.pipeline.stage_keys import StageKeys


@dataclass(frozen=True)
class TrainingRequest:
    """One training: what every rank must know of it."""

    config: RunConfig
    out: Path
    model_path: str
    train_paths: tuple[Path, ...]
    validate: Path | None
    base_weights: str
    key: str
    overwrite: bool

    @classmethod
    def of(cls, keys: StageKeys, models: ResidentModel, key: str) -> TrainingRequest:
        """Return the training of a run, by its keys and models; `key` is that of the stage."""
        run, inputs, origin = keys.run, keys.inputs, origin_of(keys.run.config, "tuned")
        path, weights = models.base_of_adapters(origin), keys.model(origin)
        return cls(keys.tuning(), run.path, path, inputs.train, inputs.validate, weights, key, run.overwrite)

    def run(self, loaded: Loaded, progress: Progress) -> TrainRecord:
        """Return how it went; all ranks must run it.

        Raises:
            StriateError: as `striate.stages.train.train`.
        """
        # Only a training that is out of date needs the libraries of training.
        from striate.stages.train import train

        config = self.config
        model: Any = loaded.model
        data = training_data(config.data, self.train_paths, self.validate, config.seed)
        return train(
            model,
            loaded.processor,
            region_to_train(config, self.out),
            data.samples,
            config.train,
            config.machine,
            seed=config.seed,
            out=self.out / "checkpoint",
            work_dir=self.out / WORK_FOLDER,
            log=self.out / "train_log.jsonl",
            base_path=self.model_path,
            broken=config.data.broken,
            base_weights=self.base_weights,
            key=self.key,
            held_out=data.held_out,
            sources=data.sources,
            overwrite=self.overwrite,
            progress=progress,
        )


def region_to_train(config: RunConfig, out: Path) -> Region:
    """Return the region of a run in the layer numbers of the model that is tuned."""
    region = read_document(out / "region.json", Region)
    if not config.prune.first:
        return region
    return renumbered(region, read_document(out / "prune.json", PruneRecord).old_to_new)


@contextmanager
def rank_zero_session(device: torch.device) -> Iterator[Callable[[TrainingRequest], None]]:
    """Yield `start(job)`, which runs the job on all other ranks; without a call they exit."""
    ranks = Ranks.launched()
    ranks.join(device)
    started = False

    def start(job: TrainingRequest) -> None:
        nonlocal started
        started = True
        ranks.broadcast(job)

    try:
        yield start
    finally:
        if not started:
            ranks.broadcast(None)
    ranks.leave()


def run_worker(config: RunConfig) -> None:
    """Wait for rank zero's job, and train with it.

    Raises:
        StriateError: the device, the model or the data can't be used here, or the training fails.
    """
    from striate.models.io.devices import resolve_device

    device = resolve_device(config.machine.device)
    ranks = Ranks.launched()
    ranks.join(device)
    job: TrainingRequest | None = ranks.broadcast(None)
    if job is not None:
        quantized = job.config.train.method == "qlora"
        job.run(load_for(job.config, job.model_path, quantized=quantized, revision=job.config.model.revision), Silent())
    ranks.leave()
