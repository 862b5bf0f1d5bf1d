"""Two gloo processes: the same loss and weights as one, text-only and picture batches mixed, save, resume, shards."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from striate.config import RunConfig
from striate.models.visual_token_skipping.shift import SHIFT_FILE

WORKER = Path(__file__).with_name("scale_worker.py")
ALONE = ("lora", "int8", "full-small", "packed", "turns", "turns-lora", "validated", "whole-steps")
TOGETHER = (*ALONE, "lora-compiled", "resumed", "bad-batch", "exchange")
SHARDED = ("sharded-full", "sharded-int8", "sharded-packed", "sharded-compiled", "sharded-resumed", "sharded-validated")
SHARDED += ("sharded-whole-steps",)
FULL_DISKS = ("full-disk-0", "full-disk-1")
SECONDS = 300


def load_worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scale_worker", WORKER)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, two_processes: Callable[..., None]) -> Path:
    """The folder in which two processes trained."""
    folder = tmp_path_factory.mktemp("two")
    two_processes(WORKER, folder, (*TOGETHER, *FULL_DISKS, *SHARDED))
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which one process trained."""
    folder = tmp_path_factory.mktemp("one")
    worker = load_worker()
    worker.build_pack(folder / "pack")
    for name in ALONE:
        worker.scenario(folder, name)
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    [file] = (file for file in (folder / "checkpoint").glob("*.safetensors") if file.name != SHIFT_FILE)
    return load_file(str(file))


PAIRS = [
    ("lora", "lora"),
    ("lora-compiled", "lora"),
    ("int8", "int8"),
    ("full-small", "full-small"),
    ("packed", "packed"),
    ("resumed", "full-small"),
    # A layer at a time; that of adapters was interrupted.
    ("turns", "turns"),
    ("turns-lora", "turns-lora"),
    ("sharded-full", "full-small"),
    ("sharded-packed", "packed"),
    ("sharded-int8", "int8"),
    ("sharded-compiled", "lora"),
    ("sharded-resumed", "lora"),
    ("validated", "validated"),
    ("sharded-validated", "validated"),
    # Image tokens skip layers, but in steps 2 and 4.
    ("whole-steps", "whole-steps"),
    ("sharded-whole-steps", "whole-steps"),
]


@pytest.mark.parametrize(("name", "same"), PAIRS, ids=[name for name, _ in PAIRS])
def test_two_processes_train_as_one(two: Path, one: Path, name: str, same: str) -> None:
    mine, wanted = rows(two / name), rows(one / same)
    assert [row["step"] for row in mine] == [1, 2, 3, 4, 5]
    for key in ("loss", "grad_norm"):
        torch.testing.assert_close(
            torch.tensor([row[key] for row in mine]), torch.tensor([row[key] for row in wanted]), rtol=1e-5, atol=1e-5
        )
    assert [row["tokens"] for row in mine] == [row["tokens"] for row in wanted]
    assert all(row["slots"] >= row["tokens"] for row in mine)
    found, expected = weights(two / name), weights(one / same)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-5, msg=key)
    assert not (two / name / "work").exists()


@pytest.mark.parametrize("name", ["whole-steps", "sharded-whole-steps"])
def test_the_log_says_which_steps_were_whole(two: Path, name: str) -> None:
    assert [row["image_tokens"] for row in rows(two / name)] == ["region", "all", "region", "all", "region"]


def test_steps_without_pictures_on_a_process_were_among_them(one: Path) -> None:
    """The data of these runs has steps of which one process gets text alone, and a last step for one process only."""
    worker = load_worker()
    from striate.training.batching.micro_batches import Share, StepSampler
    from striate.training.batching.order import SeededOrder

    samples = worker.mixed_samples(one / "pack")
    shares = [list(StepSampler(SeededOrder(samples, 0, 4), Share(1, None, process, 2))) for process in (0, 1)]
    pictured = [[any(samples[index].images for index in step) for step in share] for share in shares]
    assert any(first != second for first, second in zip(*pictured, strict=True))


@pytest.mark.parametrize("name", ["validated", "sharded-validated"])
def test_two_processes_measure_as_one(two: Path, one: Path, name: str) -> None:
    mine, wanted = ([row["validation"] for row in rows(folder)] for folder in (two / name, one / "validated"))
    for key in ("loss", "visual_loss", "text_loss"):
        assert [row[key] for row in mine] == pytest.approx([row[key] for row in wanted], rel=1e-4)
    # Else the best weights, which are compared too, would be the last ones.
    assert min(wanted, key=lambda row: row["text_loss"]) is not wanted[-1]


@pytest.mark.parametrize("name", ["lora-compiled", "sharded-compiled"])
def test_every_layer_ran_compiled(two: Path, name: str) -> None:
    """Decoder layers with and without adapters, and those of the vision encoder, in one piece each."""
    said = json.loads((two / f"{name}.0.json").read_text(encoding="utf-8"))["compiled"]
    assert said == ["6 of 6 layers run compiled, as 3 kinds"]


def test_weights_were_sharded(two: Path) -> None:
    plain = torch.load(two / "full-small" / "state.pt")
    sharded = torch.load(two / "sharded-resumed" / "state.pt")
    assert len(plain) > 50
    # What is whole again is what trained: the adapters and the projector.
    assert all("lora_" in name or "multi_modal_projector" in name for name in sharded)


def test_errors_and_records_are_on_every_process(two: Path) -> None:
    for name in (*TOGETHER, *SHARDED):
        first, second = (json.loads((two / f"{name}.{index}.json").read_text(encoding="utf-8")) for index in (0, 1))
        assert first == second
    refused = json.loads((two / "bad-batch.0.json").read_text(encoding="utf-8"))["error"]
    assert "train.batch_size 3 is not a multiple of 2 processes" in refused


@pytest.mark.parametrize("name", FULL_DISKS)
def test_a_full_disk_of_one_process_ends_all_and_keeps_the_checkpoint_before(two: Path, name: str) -> None:
    failed = int(name[-1])
    own, other = (
        json.loads((two / f"{name}.{index}.json").read_text(encoding="utf-8"))["error"]
        for index in (failed, 1 - failed)
    )
    assert "No space left on device" in own
    assert "goes on from checkpoint-1" in own
    assert f"another process of this training failed, process {failed}: " in other
    assert [path.name for path in (two / name / "work").iterdir()] == ["checkpoint-1"]


def test_exchanged_gradients_are_means(two: Path) -> None:
    found = json.loads((two / "exchange.0.json").read_text(encoding="utf-8"))
    sizes, nothing = (6, 10, 4, 4, 3, 2), (3, 5)
    # The second process has three times the first one's gradients, but for one tensor, of which it has none.
    factors = (2, 2, 2, 0, 0.5, 0)
    for number, (size, factor, gradient) in enumerate(zip(sizes, factors, found["gradients"], strict=True)):
        wanted = [(number + 1) * factor * (place + 1) for place in range(size)]
        assert gradient == (None if number in nothing else wanted), number
    assert found["values"] == [0.0] * 6


def test_layers_took_turns(two: Path, one: Path) -> None:
    for name in ("turns", "turns-lora"):
        hands = [row["open_layers"] for row in rows(two / name)]
        assert hands == [row["open_layers"] for row in rows(one / name)]
        assert all(len(hand) == 1 for hand in hands)
        assert {layer for hand in hands for layer in hand} == {1, 3}


def test_the_command_line_under_torchrun(run_yaml: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from striate.cli import app

    out = tmp_path / "run"
    assert CliRunner().invoke(app, ["select", str(run_yaml), "--out", str(out)]).exit_code == 0
    # This process holds the folder as long as the run lives.
    gc.collect()
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command = [*launch, "--rdzv-endpoint", "localhost:0", "-m", "striate", "train", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("received finite gradients") == 1
    # Two processes with micro-batches of 2 make the batch of 4.
    assert (out / "checkpoint" / "adapter_model.safetensors").is_file()
    assert len((out / "train_log.jsonl").read_text(encoding="utf-8").splitlines()) == 4
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert record["stages"]["train"]["status"] == "done"


def test_a_killed_process_ends_all_and_fewer_processes_go_on(
    run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    from striate.pipeline.flow import Flow

    settings = ("train.max_steps=40", "train.save_steps=2", "train.batch_size=6", "train.method=full")
    config = run_config(*settings)
    whole, out = tmp_path / "whole", tmp_path / "run"
    for folder in (whole, out):
        Flow(config, folder).select()
    Flow(config, whole).train()
    # Runs are held as long as their flows live.
    gc.collect()
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "3", "--rdzv-backend", "c10d"]
    command = [*launch, "--rdzv-endpoint", "localhost:0", "-m", "striate", "train", "--out", str(out)]
    launched = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = out / "train_log.jsonl"
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and launched.poll() is None and (not log.exists() or log.read_text().count("\n") < 5):
        time.sleep(0.02)
    os.kill(rank_of(2, launched.pid), signal.SIGKILL)
    killed = time.monotonic()
    said = launched.communicate(timeout=60)[0]
    assert launched.returncode != 0
    assert time.monotonic() - killed < 60
    assert "another process of this training may have ended, or can't be reached" in said
    assert "bug:" not in said
    assert 5 <= log.read_text().count("\n") < 40
    Flow(config, out).train()
    logs = [(folder / log.name).read_text().splitlines() for folder in (whole, out)]
    losses = [torch.tensor([json.loads(line)["loss"] for line in lines]) for lines in logs]
    assert len(losses[1]) == 40
    torch.testing.assert_close(losses[1], losses[0], atol=1e-5, rtol=1e-5)


def rank_of(rank: int, launcher: int) -> int:
    """Return the process that a launcher gave a rank."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"\0RANK={rank}\0" in f"\0{Path(f'/proc/{child}/environ').read_text()}":
            return int(child)
    raise AssertionError("the launcher has no such rank")
