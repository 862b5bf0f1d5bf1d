"""What tests of trainings share: a training of a loaded model, what was said, and what it left."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from striate.artifacts import Region, TrainRecord
from striate.config import MachineSection, TrainSection
from striate.data.samples import Sample
from striate.stages.train import train

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

Run = Callable[..., TrainRecord]


class Said:
    """A progress that remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def track(self, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        return nullcontext(lambda count: None)


class Killed(Said):
    """A progress that interrupts a training as its step number `after` ends."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def track(self, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        return nullcontext(self._advance)

    def _advance(self, count: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def runner(folder: Path, samples: Sequence[Sample], region: Region, machine: MachineSection) -> Run:
    """Return a function that trains a model, with what it leaves in `folder / name`."""

    def start(loaded: Loaded, name: str, config: TrainSection, region: Region = region, **more: Any) -> TrainRecord:
        place = folder / name
        return train(
            loaded.model,
            loaded.processor,
            region,
            more.pop("samples", samples),
            config,
            machine.model_copy(update=more.pop("machine", {})),
            seed=0,
            out=place / "checkpoint",
            work_dir=place / "work",
            log=place / "log.jsonl",
            base_path=more.pop("base_path", "base"),
            **more,
        )

    return start


def losses(folder: Path) -> torch.Tensor:
    """Return the loss of every step."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return torch.tensor([json.loads(line)["loss"] for line in lines])


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of a model's tensors."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
