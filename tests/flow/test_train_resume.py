"""Interrupted training: going on gives the same bits, and nothing half-written counts."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from training_kit import Killed, weights

from striate.artifacts import Region, TrainRecord
from striate.config import LoraSection, MachineSection, TrainSection
from striate.data.reading import read_samples
from striate.data.samples import Sample
from striate.errors import ArtifactError, TrainingError
from striate.stages.train import train
from striate.training.checkpointing.checkpoints import COMPLETE
from striate.training.trainer import RegionTrainer

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

REGION = Region(layers=(1, 3), num_layers=4, spec="ids:1,3")
LORA = TrainSection(
    batch_size=4, epochs=2, lr=1e-2, max_length=96, save_steps=1, lora=LoraSection(r=4, alpha=8, dropout=0.3)
)


def run(folder: Path, samples: list[Sample], loaded: Loaded, config: TrainSection = LORA, **more: Any) -> TrainRecord:
    return train(
        loaded.model,
        loaded.processor,
        more.pop("region", REGION),
        samples,
        config,
        MachineSection(micro_batch=2),
        seed=more.pop("seed", 0),
        out=folder / "checkpoint",
        work_dir=folder / "work",
        log=folder / "log.jsonl",
        base_path="base",
        **more,
    )


def rows_of(folder: Path) -> list[tuple[int, float, float]]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [(row["step"], row["loss"], row["lr"]) for row in lines]


@pytest.fixture
def start(tmp_path: Path, pack_dir: Path) -> Any:
    samples = read_samples(pack_dir)

    def call(loaded: Loaded, name: str, config: TrainSection = LORA, region: Region = REGION, **more: Any) -> Any:
        return run(tmp_path / name, more.pop("samples", samples), loaded, config, region=region, **more)

    return call


@pytest.fixture(scope="module", params=["lora", "full"])
def whole(
    request: pytest.FixtureRequest,
    llava_builder: Callable[..., Loaded],
    saved_pack: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """A training that nothing interrupted: its settings, record, weights and log."""
    config, loaded = LORA.model_copy(update={"method": request.param}), llava_builder()
    folder = tmp_path_factory.mktemp("whole")
    record = run(folder, read_samples(saved_pack), loaded, config)
    return SimpleNamespace(config=config, record=record, weights=weights(loaded.model), rows=rows_of(folder))


@pytest.mark.parametrize("steps", [3, 4, 6])
def test_resumed_is_uninterrupted(start: Any, whole: Any, tiny_llava: Loaded, tmp_path: Path, steps: int) -> None:
    killed, resumed = (copy.deepcopy(tiny_llava) for _ in range(2))
    with pytest.raises(KeyboardInterrupt):
        start(killed, "cut", whole.config, progress=Killed(steps))
    assert not (tmp_path / "cut" / "checkpoint").exists()
    torch.manual_seed(99)
    progress = Killed(-1)
    again = start(resumed, "cut", whole.config, progress=progress)
    assert progress.said[0] == f"going on from step {steps - 1} of 8"
    for name, tensor in weights(resumed.model).items():
        assert torch.equal(tensor, whole.weights[name]), name
    assert rows_of(tmp_path / "cut") == whole.rows
    record = whole.record
    assert (again.first_loss, again.last_loss, again.proof) == (record.first_loss, record.last_loss, record.proof)


@pytest.mark.parametrize("steps", [3, 4])
def test_resumed_is_uninterrupted_with_some_steps_whole(
    start: Any, tiny_llava: Loaded, tmp_path: Path, steps: int
) -> None:
    """At a step that is whole, and at one that is not."""
    settings = {"image_tokens": "region", "image_whole_every": 3, "max_steps": 6}
    whole, killed, resumed = (copy.deepcopy(tiny_llava) for _ in range(3))
    config = LORA.model_copy(update=settings)
    start(whole, "whole", config)
    with pytest.raises(KeyboardInterrupt):
        start(killed, "cut", config, progress=Killed(steps))
    with pytest.raises(TrainingError, match=r"image_whole_every"):
        start(copy.deepcopy(tiny_llava), "cut", config.model_copy(update={"image_whole_every": 2}))
    progress = Killed(-1)
    start(resumed, "cut", config, progress=progress)
    assert f"going on from step {steps - 1} of 6" in progress.said
    expected = weights(whole.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed.model).items())
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    lines = [json.loads(line) for line in (tmp_path / "cut" / "log.jsonl").read_text().splitlines()]
    assert [line["image_tokens"] == "all" for line in lines] == [False, False, True] * 2


def test_interrupted_while_saving(start: Any, tiny_llava: Loaded, tmp_path: Path, monkeypatch: Any) -> None:
    whole, killed, resumed = (copy.deepcopy(tiny_llava) for _ in range(3))
    start(whole, "whole")
    original = RegionTrainer._save_optimizer_and_scheduler

    def stop(self: RegionTrainer, output_dir: str) -> None:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        original(self, output_dir)

    monkeypatch.setattr(RegionTrainer, "_save_optimizer_and_scheduler", stop)
    with pytest.raises(KeyboardInterrupt):
        start(killed, "cut")
    work = tmp_path / "cut" / "work"
    assert (work / "checkpoint-3").exists()
    assert not (work / "checkpoint-3" / COMPLETE).exists()
    monkeypatch.undo()
    progress = Killed(-1)
    start(resumed, "cut", progress=progress)
    assert progress.said[0] == "going on from step 2 of 8"
    expected = weights(whole.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed.model).items())


def test_interrupted_after_the_last_step(start: Any, tiny_llava: Loaded, monkeypatch: Any) -> None:
    whole, killed, resumed = (copy.deepcopy(tiny_llava) for _ in range(3))
    config = LORA.model_copy(update={"max_steps": 3})
    record = start(whole, "whole", config)
    with monkeypatch.context() as patch:
        patch.setattr("striate.stages.train.save_model", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            start(killed, "cut", config)
    again = start(resumed, "cut", config)
    assert again.proof == record.proof
    assert again.steps == 3
    expected = weights(whole.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed.model).items())


def test_another_run_is_refused(start: Any, tiny_llava: Loaded) -> None:
    killed, other = copy.deepcopy(tiny_llava), copy.deepcopy(tiny_llava)
    with pytest.raises(KeyboardInterrupt):
        start(killed, "cut", progress=Killed(3))
    with pytest.raises(TrainingError, match=r"checkpoint-2 is of another training run: region changed"):
        start(other, "cut", region=Region(layers=(0,), num_layers=4, spec="ids:0"))
    with pytest.raises(TrainingError, match=r"train\.lr, seed changed"):
        start(other, "cut", LORA.model_copy(update={"lr": 0.5}), seed=1)


def test_other_pictures_are_other_data(start: Any, tiny_llava: Loaded, pack_dir: Path) -> None:
    killed, other = copy.deepcopy(tiny_llava), copy.deepcopy(tiny_llava)
    with pytest.raises(KeyboardInterrupt):
        start(killed, "cut", progress=Killed(3))
    samples = read_samples(pack_dir)
    pictures = [sample.images for sample in samples if sample.images]
    turned = iter([*pictures[1:], *pictures[:1]])
    shown = [dataclasses.replace(sample, images=next(turned)) if sample.images else sample for sample in samples]
    assert [(sample.id, sample.messages) for sample in shown] == [(sample.id, sample.messages) for sample in samples]
    with pytest.raises(
        TrainingError,
        match=r"checkpoint-2 is of another training run: data \(sample '.*', which a step has learned from\) changed",
    ):
        start(other, "cut", samples=shown)


def test_a_diverging_loss_stops(start: Any, tiny_llava: Loaded, tmp_path: Path) -> None:
    config = LORA.model_copy(update={"method": "full", "lr": 1e38, "warmup_ratio": 0.0, "save_steps": 9})
    with pytest.raises(TrainingError, match=r"training diverged at step \d: loss"):
        start(tiny_llava, "nan", config)
    assert not any((tmp_path / "nan").glob("work/*"))
    assert not (tmp_path / "nan" / "checkpoint").exists()


def test_only_checkpoints_are_removed(start: Any, tiny_llava: Loaded, tmp_path: Path) -> None:
    other = copy.deepcopy(tiny_llava)
    (tmp_path / "mine" / "work").mkdir(parents=True)
    (tmp_path / "mine" / "work" / "notes.txt").touch()
    config = LORA.model_copy(update={"max_steps": 1})
    start(tiny_llava, "mine", config)
    assert [path.name for path in (tmp_path / "mine" / "work").iterdir()] == ["notes.txt"]
    start(other, "clean", config)
    assert not (tmp_path / "clean" / "work").exists()


def test_an_unwritable_work_folder(start: Any, tiny_llava: Loaded, tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RegionTrainer, "save_model", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        start(tiny_llava, "full")
