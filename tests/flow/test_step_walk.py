"""How many of striate's files one compiled training step passes through: a reader must be able to follow it."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest
import torch

import striate
from striate.artifacts import Region
from striate.config import LoraSection, MachineSection, TrainSection
from striate.data.reading import read_samples
from striate.stages.train import train
from striate.training import session
from striate.training.trainer import RegionTrainer

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

HOME = str(Path(striate.__file__).parent)
LORA = LoraSection(r=4, alpha=8, dropout=0.1)


@pytest.mark.parametrize(("packing", "most"), [(False, 12), (True, 14)], ids=["padded", "packed"])
def test_a_compiled_step_passes_few_files(
    tiny_llava: Loaded, pack_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: bool, most: int
) -> None:
    """With all that a step does on CUDA: hints, LoRA's dropout from keys, compiled layers."""
    files: set[str] = set()
    steps: list[int] = []
    whole = RegionTrainer.training_step

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(HOME):
            files.add(frame.f_code.co_filename.removeprefix(HOME))

    def watched(self: RegionTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        steps.append(1)
        # The first ones compile and compare.
        sys.setprofile(note if len(steps) == 3 else None)
        try:
            return whole(self, *args, **kwargs)
        finally:
            sys.setprofile(None)

    monkeypatch.setattr(RegionTrainer, "training_step", watched)
    monkeypatch.setattr(session.TrainingSession, "_on_card", True)
    monkeypatch.setattr(session, "compiled_layers", partial(session.compiled_layers, backend="eager"))
    train(
        tiny_llava.model,
        tiny_llava.processor,
        Region(layers=(1, 3), num_layers=4, spec="ids:1,3"),
        # Of one length: each other length is compiled again.
        [replace(read_samples(pack_dir)[0], id=str(number)) for number in range(4)],
        TrainSection(lora=LORA, batch_size=4, max_steps=3, max_length=96, packing=packing),
        MachineSection(micro_batch=2, compile="on", pack_tokens=100),
        seed=0,
        out=tmp_path / "out",
        work_dir=tmp_path / "work",
        log=tmp_path / "log.jsonl",
        base_path="base",
    )
    assert "/training/trainer.py" in files
    assert "/training/compile/regional.py" in files
    print(*sorted(files), sep="\n")
    assert len(files) <= most, sorted(files)
