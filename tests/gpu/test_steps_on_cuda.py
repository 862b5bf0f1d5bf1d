"""Steps on CUDA that nothing waits in, and compiled layers as CUDA graphs: the losses and weights of plain ones."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from training_kit import Said

from striate.artifacts import Region
from striate.config import LoraSection, MachineSection, TrainSection
from striate.data.reading import read_samples
from striate.stages.train import train
from striate.training.trainer import RegionTrainer

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
REGION = Region(layers=(1, 3), num_layers=4, spec="ids:1,3")
LORA = LoraSection(r=4, alpha=8, dropout=0.2)


@pytest.mark.parametrize(("packing", "cache"), [(False, "off"), (True, "off"), (True, "memory")])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("compiled", ["off", "on"])
def test_no_step_waits(
    tiny_llava: Loaded,
    pack_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    packing: bool,
    cache: Any,
    method: Any,
    compiled: Any,
) -> None:
    """From the fourth step to the seventh of nine PyTorch raises wherever the CPU waits for the device."""
    whole = RegionTrainer.training_step
    steps = []

    def watched(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        steps.append(1)
        torch.cuda.set_sync_debug_mode("error" if 4 <= len(steps) <= 7 else "default")
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(RegionTrainer, "training_step", watched)
    model = copy.deepcopy(tiny_llava.model).to("cuda", torch.bfloat16)
    config = TrainSection(method=method, lora=LORA, batch_size=4, max_steps=9, max_length=96, packing=packing)
    try:
        train(
            model,
            tiny_llava.processor,
            REGION,
            [one for one in read_samples(pack_dir) if one.images][:4],
            config,
            MachineSection(micro_batch=2, compile=compiled, graphs="off", pack_tokens=400, cache_vision=cache),
            seed=0,
            out=tmp_path / "out",
            work_dir=tmp_path / "work",
            log=tmp_path / "log.jsonl",
            base_path="base",
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(steps) == 9
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 9


@pytest.mark.parametrize("method", ["full", "lora"])
def test_graphs_train_alike(tiny_llava: Loaded, pack_dir: Path, tmp_path: Path, method: Any) -> None:
    """Six steps of two rows each: gradients of the first row outlive the replay of the second."""
    losses, lines = {}, {}
    for graphs in ("off", "on"):
        said = Said()
        train(
            copy.deepcopy(tiny_llava.model).to("cuda", torch.bfloat16),
            tiny_llava.processor,
            REGION,
            [sample for sample in read_samples(pack_dir) if sample.images][:4],
            TrainSection(method=method, lora=LORA, batch_size=4, max_steps=6, max_length=96, packing=True, lr=1e-3),
            MachineSection(compile="on", graphs=graphs, pack_tokens=100),
            seed=0,
            out=tmp_path / graphs / "out",
            work_dir=tmp_path / graphs / "work",
            log=tmp_path / graphs / "log.jsonl",
            base_path="base",
            progress=said,  # type: ignore[arg-type]
        )
        rows = [json.loads(row) for row in (tmp_path / graphs / "log.jsonl").read_text().splitlines()]
        losses[graphs], lines[graphs] = [row["loss"] for row in rows], said.said
    assert losses["on"][-1] < losses["on"][0]
    # With dropout filled rows draw other masks.
    assert losses["on"] == pytest.approx(losses["off"], rel=0.02 if method == "full" else 0.2)
    assert not any("uncompiled" in line for line in lines["on"]), lines["on"]


def test_later_steps_record_no_graph(
    tiny_llava: Loaded, pack_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The four same samples in every step: all forms of batches have come after a few, with dropout too."""
    from torch._inductor.cudagraph_trees import CUDAGraphTreeManager

    steps, recorded = [0], []
    whole, record = RegionTrainer.training_step, CUDAGraphTreeManager.record_function

    def counted(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        steps[0] += 1
        return whole(self, *args, **kwargs)

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        recorded.append(steps[0])
        return record(self, *args, **kwargs)

    monkeypatch.setattr(RegionTrainer, "training_step", counted)
    monkeypatch.setattr(CUDAGraphTreeManager, "record_function", noted)
    train(
        copy.deepcopy(tiny_llava.model).to("cuda", torch.bfloat16),
        tiny_llava.processor,
        REGION,
        [sample for sample in read_samples(pack_dir) if sample.images][:4],
        TrainSection(method="lora", lora=LORA, batch_size=4, max_steps=16, max_length=96, packing=True),
        MachineSection(compile="on", graphs="on", pack_tokens=400),
        seed=0,
        out=tmp_path / "out",
        work_dir=tmp_path / "work",
        log=tmp_path / "log.jsonl",
        base_path="base",
    )
    assert recorded
    assert max(recorded) <= steps[0] / 2
