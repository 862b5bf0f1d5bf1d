"""Kept hidden states on CUDA: the losses of plain training, in full and in half precision."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from striate.artifacts import Region
from striate.config import MachineSection, TrainSection
from striate.data.reading import read_samples
from striate.stages.train import train

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("compile", ["off", "on"])
def test_training_on_kept_states_is_training(
    tiny_llava: Loaded,
    pack_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    packing: bool,
    where: Any,
    compile: Any,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    samples = read_samples(pack_dir)
    losses = []
    for cache in ("off", where):
        folder = tmp_path / cache
        train(
            copy.deepcopy(tiny_llava.model).to("cuda", dtype),
            tiny_llava.processor,
            Region(layers=(2, 3), num_layers=4, spec="ids:2,3"),
            samples,
            TrainSection(
                method="full",
                train_projector=False,
                batch_size=6,
                epochs=2,
                lr=1e-3,
                warmup_ratio=0,
                packing=packing,
            ),
            MachineSection(
                micro_batch=3,
                pack_tokens=120,
                cache_hidden=cache,  # type: ignore[arg-type]
                cache_folder=str(tmp_path / "kept"),
                workers=2,
                compile=compile,
            ),
            seed=0,
            out=folder / "out",
            work_dir=folder / "work",
            log=folder / "log.jsonl",
            base_path="base",
        )
        losses.append([json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()])
    close = 1e-4 if dtype is torch.float32 else 2e-2
    assert losses[1] == pytest.approx(losses[0], rel=close)
