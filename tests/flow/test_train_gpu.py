"""Training on CUDA: half precision, checkpointing and resuming as on the CPU."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from striate.artifacts import Region
from striate.config import LoraSection, MachineSection, TrainSection
from striate.data.reading import read_samples
from striate.stages.train import train

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_falls(
    tiny_llava: Loaded, pack_dir: Path, tmp_path: Path, dtype: torch.dtype, method: Any, checkpointing: bool
) -> None:
    model = copy.deepcopy(tiny_llava.model).to("cuda", dtype)
    config = TrainSection(
        method=method,
        lora=LoraSection(r=4, alpha=8),
        batch_size=4,
        epochs=15,
        lr=5e-3 if method == "full" else 2e-2,
        max_length=96,
        gradient_checkpointing=checkpointing,
    )
    record = train(
        model,
        tiny_llava.processor,
        Region(layers=(1, 3), num_layers=4, spec="ids:1,3"),
        read_samples(pack_dir, limit=1) * 4,
        config,
        MachineSection(micro_batch=2),
        seed=0,
        out=tmp_path / "out",
        work_dir=tmp_path / "work",
        log=tmp_path / "log.jsonl",
        base_path="base",
    )
    assert record.last_loss < 0.5 * record.first_loss
    assert record.peak_memory_gib > 0
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
