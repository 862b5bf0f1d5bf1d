"""Checkpoints of a training that was stopped: what is damaged is named, and the one before it is taken."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import SafetensorError
from training_kit import weights

from striate.artifacts import Region
from striate.config import LoraSection, MachineSection, TrainSection
from striate.data.reading import read_samples
from striate.data.samples import Sample
from striate.errors import ArtifactError, TrainingError
from striate.stages.train import train
from striate.training.checkpointing.checkpoints import Checkpoint, CheckpointStore
from striate.training.checkpointing.resume_identity import identity

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

REGION = Region(layers=(1, 3), num_layers=4, spec="ids:1,3")
CONFIG = TrainSection(
    batch_size=4, max_steps=4, lr=1e-2, max_length=96, save_steps=1, lora=LoraSection(r=4, alpha=8, dropout=0.3)
)
EARLIER = Path(__file__).parents[1] / "data" / "run_7dbed79"
FILES = [
    "complete.json",
    "optimizer.pt",
    "rng_state.pth",
    "samples.txt",
    "scheduler.pt",
    "train_log.jsonl",
    "trainable.safetensors",
    "trainer_state.json",
]


class Stop:
    """A progress that stops a training after its third step."""

    def say(self, text: str) -> None:
        pass

    def track(self, label: str, total: int) -> Any:
        self.left = 3
        return nullcontext(self._advance)

    def _advance(self, count: int) -> None:
        self.left -= count
        if not self.left:
            raise KeyboardInterrupt


@dataclass
class Stopped:
    """A training stopped after its third step: checkpoints 1 and 2 are there."""

    folder: Path
    samples: list[Sample]

    def store(self, config: TrainSection = CONFIG, samples: list[Sample] | None = None) -> CheckpointStore:
        return CheckpointStore(
            self.folder / "work", identity(REGION, config, samples or self.samples, 0, "base", "weights")
        )

    def find(self, said: list[str] | None = None, overwrite: bool = False, **how: Any) -> Checkpoint | None:
        say: Callable[[str], None] = ([] if said is None else said).append
        return self.store(**how).find(self.folder / "log.jsonl", overwrite, say)


def run(loaded: Loaded, folder: Path, samples: list[Sample], config: TrainSection = CONFIG, **more: Any) -> Any:
    return train(
        loaded.model,
        loaded.processor,
        REGION,
        samples,
        config,
        MachineSection(micro_batch=2),
        seed=0,
        out=folder / "checkpoint",
        work_dir=folder / "work",
        log=folder / "log.jsonl",
        base_path="base",
        base_weights="weights",
        **more,
    )


@pytest.fixture(scope="module")
def template(
    llava_builder: Callable[..., Loaded], saved_pack: Path, tmp_path_factory: pytest.TempPathFactory
) -> Stopped:
    stopped = Stopped(tmp_path_factory.mktemp("stopped"), read_samples(saved_pack))
    with pytest.raises(KeyboardInterrupt):
        run(llava_builder(), stopped.folder, stopped.samples, progress=Stop())
    return stopped


@pytest.fixture
def stopped(template: Stopped, tmp_path: Path) -> Stopped:
    shutil.copytree(template.folder, tmp_path / "cut")
    return replace(template, folder=tmp_path / "cut")


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "gone":
        file.unlink()
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


def test_every_file_of_a_checkpoint_is_in_the_table(stopped: Stopped) -> None:
    assert sorted(path.name for path in (stopped.folder / "work/checkpoint-2").iterdir()) == FILES


@pytest.mark.parametrize("how", ["gone", "empty", "cut", "flip"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(stopped: Stopped, name: str, how: str) -> None:
    file = stopped.folder / "work/checkpoint-2" / name
    damage(file, how)
    said: list[str] = []
    found = stopped.find(said)
    assert found is not None
    assert (found.step, len(found.rows)) == (1, 1)
    if (name, how) != ("complete.json", "gone"):  # which is what an interrupted save looks like
        assert len(said) == 1
        assert f"checkpoint-2/{name} " in said[0]
        assert said[0].endswith(": that checkpoint is left out, checkpoint-1 is taken")
    assert not file.parent.exists()


def test_where_none_is_whole_it_says_so_and_overwriting_begins_anew(stopped: Stopped) -> None:
    for step in (1, 2):
        damage(stopped.folder / f"work/checkpoint-{step}/optimizer.pt", "flip")
    with pytest.raises(TrainingError, match=r"no checkpoint in .* is whole: .*checkpoint-2/optimizer.pt was changed"):
        stopped.find()
    said: list[str] = []
    assert stopped.find(said, overwrite=True) is None
    assert said[0].startswith("training begins anew: no checkpoint")
    assert not (stopped.folder / "work").exists()


@pytest.mark.parametrize(
    "log", ["", '{"step": 2}\n', "no json\n", '{"step": 1, "loss": 0.5, "lr": 1, "seconds": 1}\n', None]
)
def test_the_log_is_that_of_the_checkpoint_whatever_became_of_it(stopped: Stopped, log: str | None) -> None:
    path = stopped.folder / "log.jsonl"
    whole = path.read_text().splitlines()[:2]
    path.unlink()
    if log is not None:
        path.write_text(log)
    found = stopped.find()
    assert found is not None
    assert [json.dumps(row) for row in found.rows] == whole


def test_going_on_from_the_one_before_gives_the_same_bits(
    stopped: Stopped, llava_builder: Callable[..., Loaded], tmp_path: Path
) -> None:
    whole, resumed = llava_builder(), llava_builder()
    record = run(whole, tmp_path / "whole", stopped.samples)
    damage(stopped.folder / "work/checkpoint-2/trainable.safetensors", "flip")
    (stopped.folder / "log.jsonl").write_text("")
    again = run(resumed, stopped.folder, stopped.samples)
    expected = weights(whole.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed.model).items())
    rows = [json.loads(line) for line in (stopped.folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert again.seconds == pytest.approx(sum(row["seconds"] for row in rows))
    assert (again.tokens, again.first_loss, again.last_loss) == (record.tokens, record.first_loss, record.last_loss)


def test_another_number_of_processes_is_said(stopped: Stopped, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    said: list[str] = []
    assert stopped.find(said)
    assert said == ["checkpoint-2 was written by 1 processes: dropout goes on with other random numbers"]


def test_checkpoints_are_kept_by_number_whatever_the_clock_says(stopped: Stopped) -> None:
    work, store = stopped.folder / "work", stopped.store()
    shutil.copytree(work / "checkpoint-2", work / "checkpoint-10")
    (work / "checkpoint-10/complete.json").unlink()
    os.utime(work / "checkpoint-10", (0, 0))
    store.complete(10, [], "", 0)
    assert sorted(path.name for path in work.iterdir()) == ["checkpoint-10", "checkpoint-2"]


def test_all_of_a_checkpoint_is_on_the_disk_before_its_manifest_is(
    stopped: Stopped, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda opened: synced.append(Path(f"/proc/self/fd/{opened}").resolve().name))
    stopped.store().complete(2, [], "", 0)
    manifest = next(index for index, name in enumerate(synced) if name.startswith(".complete.json."))
    assert set(FILES) - {"complete.json"} <= set(synced[:manifest])
    assert synced[manifest + 1 :] == ["checkpoint-2"]


ERRORS: dict[str, tuple[str, Exception]] = {
    "safetensors": (
        "striate.training.checkpointing.trained_weights.save_file",
        SafetensorError("No space left on device"),
    ),
    "torch": ("torch.save", RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")),
    "the system": ("striate.storage.manifest.write_text", OSError(27, "File too large")),
}


@pytest.mark.parametrize("place", ERRORS)
def test_a_full_disk_is_one_clear_error_and_the_steps_are_kept(
    stopped: Stopped, llava_builder: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    target, error = ERRORS[place]

    def full(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(target, full)
        with pytest.raises(ArtifactError, match=r"can't write .*checkpoint-3: ") as caught:
            run(llava_builder(), stopped.folder, stopped.samples)
    assert caught.value.next_step == "free some space: the same command then goes on from checkpoint-2"
    assert sorted(path.name for path in (stopped.folder / "work").iterdir()) == ["checkpoint-1", "checkpoint-2"]


def test_weights_that_are_not_sane_are_no_checkpoint(
    llava_builder: Callable[..., Loaded], stopped: Stopped, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"method": "full", "lr": 1e9, "max_grad_norm": 1e30})
    with pytest.raises(TrainingError, match=r"diverged before checkpoint-\d: the norm .* went from") as caught:
        run(llava_builder(), tmp_path / "wild", stopped.samples, config)
    for folder in (tmp_path / "wild/work").glob("*"):
        largest = max(float(tensor.abs().max()) for tensor in torch.load(folder / "optimizer.pt")["state"][0].values())
        assert largest < 1e6
    assert "lower train.lr or raise train.warmup_ratio with --overwrite" in caught.value.next_step
    # What it advises works.
    calm = config.model_copy(update={"lr": 1e-4})
    assert run(llava_builder(), tmp_path / "wild", stopped.samples, calm, overwrite=True).steps == 4


@pytest.fixture
def earlier(tmp_path: Path) -> tuple[Path, Callable[[], Checkpoint | None]]:
    """A checkpoint of an earlier version, without digests."""
    shutil.copytree(EARLIER / "stopped", tmp_path / "stopped")
    made = json.loads(next((tmp_path / "stopped/.training").glob("*/complete.json")).read_text())
    same = identity(REGION, CONFIG, read_samples(EARLIER / "pack"), 0, "base")
    same.facts.clear()
    same.facts.update({key: value for key, value in made.items() if key != "proof"})
    store = CheckpointStore(tmp_path / "stopped/.training", same)
    return tmp_path / "stopped", lambda: store.find(tmp_path / "stopped/train_log.jsonl", False, lambda said: None)


def test_a_checkpoint_of_an_earlier_version_is_gone_on_with(earlier: Any) -> None:
    assert earlier[1]().step == 2


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "rng_state.pth", "scheduler.pt", "trainable.safetensors", "trainer_state.json"]
)
@pytest.mark.parametrize("how", ["gone", "empty", "cut"])
def test_one_of_an_earlier_version_that_is_damaged_is_refused(earlier: Any, name: str, how: str) -> None:
    damage(earlier[0] / ".training/checkpoint-2" / name, how)
    with pytest.raises(TrainingError, match=f"is whole: .*{name} can't be read"):
        earlier[1]()


@pytest.mark.parametrize("how", ["gone", "empty", "cut"])
def test_its_log_must_have_all_its_steps(earlier: Any, how: str) -> None:
    damage(earlier[0] / "train_log.jsonl", how)
    with pytest.raises(TrainingError, match=r"train_log.jsonl lacks the line of step \d, of 2 that are done"):
        earlier[1]()


@pytest.mark.parametrize("kind", ["file", "dead link", "loop"])
def test_what_is_no_folder_of_checkpoints_is_named(tmp_path: Path, kind: str) -> None:
    place = tmp_path / ".training"
    if kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to(place if kind == "loop" else tmp_path / "gone")
    identity: Any = None
    store = CheckpointStore(place, identity)
    with pytest.raises(ArtifactError, match="is no folder") as error:
        store.find(tmp_path / "log", False, print)
    assert "move it away, or use --overwrite" in error.value.next_step
    assert store.find(tmp_path / "log", True, print) is None
    assert not place.is_symlink()
    assert not place.exists()
