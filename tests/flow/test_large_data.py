"""Training on samples that stay on the disk gives the bits of training on lists, workers and interruptions included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from training_kit import Killed, weights

from striate.artifacts import Region
from striate.config import LoraSection, MachineSection, TrainSection, parse_config
from striate.data.held_out import training_data
from striate.data.samples import Sample
from striate.data.store import store_once
from striate.data.store.sample_rows import SampleRows
from striate.errors import TrainingError
from striate.stages.train import train

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

REGION = Region(layers=(1, 3), num_layers=4, spec="ids:1,3")
LORA = TrainSection(
    batch_size=4, epochs=2, lr=1e-2, max_length=96, save_steps=1, lora=LoraSection(r=4, alpha=8, dropout=0.3)
)
PACKED = LORA.model_copy(update={"packing": True})


def run(folder: Path, loaded: Loaded, samples: Sequence[Sample], config: TrainSection = LORA, **more: Any) -> Any:
    machine = MachineSection(micro_batch=2, workers=more.pop("workers", 0), pack_tokens=120)
    paths = {"out": folder / "checkpoint", "work_dir": folder / "work", "log": folder / "log.jsonl"}
    model, processor = loaded.model, loaded.processor
    train(model, processor, REGION, samples, config, machine, seed=3, base_path="base", **paths, **more)
    rows = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [(row["step"], row["loss"]) for row in rows], weights(model)


def same(one: Any, other: Any) -> bool:
    return one[0] == other[0] and all(torch.equal(tensor, other[1][name]) for name, tensor in one[1].items())


def read(pack: Path) -> Sequence[Sample]:
    section = parse_config({"model": {"path": "o/m"}, "data": {"train": [str(pack)]}}, ["data.text=20%"]).data
    return training_data(section, [pack], seed=3).samples


@pytest.fixture
def stored(pack_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SampleRows:
    """The samples of a pack, which stay on the disk."""
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store_once, "WORTH_BYTES", 0)
    samples = read(pack_dir)
    assert isinstance(samples, SampleRows)
    return samples


@pytest.mark.parametrize("config", [LORA, PACKED], ids=["padded", "packed"])
def test_the_same_bits_as_of_lists(
    stored: SampleRows, llava_builder: Callable[..., Loaded], tmp_path: Path, config: TrainSection
) -> None:
    expected = run(tmp_path / "list", llava_builder(), list(stored), config)
    assert same(expected, run(tmp_path / "disk", llava_builder(), stored, config))
    if not config.packing:
        assert same(expected, run(tmp_path / "workers", llava_builder(), stored, config, workers=2))


def test_an_interrupted_training_goes_on_in_the_same_order(
    stored: SampleRows, llava_builder: Callable[..., Loaded], pack_dir: Path, tmp_path: Path
) -> None:
    expected = run(tmp_path / "whole", llava_builder(), stored)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", llava_builder(), stored, progress=Killed(3))
    progress = Killed(-1)
    assert same(expected, run(tmp_path / "cut", llava_builder(), read(pack_dir), progress=progress))
    assert progress.said[0].startswith("going on from step 2 of ")


def test_another_picture_or_text_is_other_data(
    stored: SampleRows, llava_builder: Callable[..., Loaded], pack_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", llava_builder(), stored, progress=Killed(3))
    rows = json.loads((pack_dir / "train.json").read_text())
    for row in rows:
        row["conversations"][1]["value"] += "!"
    (pack_dir / "train.json").write_text(json.dumps(rows))
    with pytest.raises(TrainingError, match=r"data \(sample '.*', which a step has learned from\)"):
        run(tmp_path / "cut", llava_builder(), read(pack_dir))
    (pack_dir / "train.json").write_text(json.dumps(rows).replace("!", ""))
    for number in range(12):
        (pack_dir / f"images/square_{number:02d}.png").write_bytes(
            (pack_dir / f"images/square_{(number + 1) % 4:02d}.png").read_bytes()
        )
    with pytest.raises(TrainingError, match=r"data \(sample '.*', which a step has learned from\)"):
        run(tmp_path / "cut", llava_builder(), read(pack_dir))


def test_processes_that_begin_together_store_once(pack_dir: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom striate.data.store import store_once\n"
        "store_once.WORTH_BYTES = 0\nfrom striate.data.reading import read_samples\n"
        "samples = read_samples(Path(sys.argv[1]))\nprint(type(samples).__name__, len(samples), samples[12].id)"
    )
    environment = {**os.environ, "STRIATE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code, str(pack_dir)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(3)]
    assert {process.communicate()[0] for process in running} == {"StoredSamples 13 text-0\n"}
    assert len([path for path in (tmp_path / "cache/samples").iterdir() if not path.name.startswith(".")]) == 1
