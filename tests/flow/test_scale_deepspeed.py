"""DeepSpeed's ZeRO-3 with the shipped config, two processes on its CPU accelerator: as one process, save, resume."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

if importlib.util.find_spec("deepspeed") is None:
    pytest.skip("needs deepspeed (the extra `deepspeed`)", allow_module_level=True)

HERE = Path(__file__).parent
# Each scenario, and how near its losses and weights come to those of one process.
SCENARIOS = {
    "zero3-full": 1e-5,
    "zero3-packed": 1e-5,
    "zero3-resumed": 1e-5,
    "zero3-clipped": 1e-5,
    "zero3-compiled": 1e-5,
    "zero3-layers-alone": 1e-5,
    # Sums of gradients are rounded to bfloat16.
    "zero3-half": 2e-2,
}


def load_worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scale_worker", HERE / "scale_worker.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, two_processes: Callable[..., None]) -> Path:
    """The folder in which two processes trained; DeepSpeed finds what it builds its CPU collectives with on PATH."""
    folder = tmp_path_factory.mktemp("zero3")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    two_processes(HERE / "zero3_worker.py", folder, tuple(SCENARIOS), DS_ACCELERATOR="cpu", PATH=path)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which one process trained, without DeepSpeed."""
    folder = tmp_path_factory.mktemp("alone")
    worker = load_worker()
    worker.build_pack(folder / "pack")
    worker.run(folder, "zero3-full", worker.FULL)
    worker.run(folder, "zero3-packed", worker.FULL.model_copy(update={"packing": True}))
    worker.run(folder, "zero3-resumed", worker.LORA)
    worker.run(folder, "zero3-clipped", worker.LORA.model_copy(update={"max_grad_norm": 0.5}))
    worker.run(folder, "zero3-compiled", worker.LORA)
    worker.run(folder, "zero3-layers-alone", worker.LORA.model_copy(update={"projector": "frozen"}))
    worker.run(folder, "zero3-half", worker.LORA, dtype=torch.bfloat16)
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    [file] = (folder / "checkpoint").glob("*.safetensors")
    return load_file(str(file))


@pytest.mark.parametrize("name", SCENARIOS)
def test_zero3_trains_as_one_process(two: Path, one: Path, name: str) -> None:
    mine, wanted, tolerance = rows(two / name), rows(one / name), SCENARIOS[name]
    assert [row["step"] for row in mine] == [1, 2, 3, 4, 5]
    for key in ("loss", "grad_norm"):
        found, expected = (torch.tensor([row[key] for row in some], dtype=torch.float64) for some in (mine, wanted))
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert [row["lr"] for row in mine] == [row["lr"] for row in wanted]
    assert [row["projector_lr"] for row in mine] == [row["projector_lr"] for row in wanted]
    assert not (two / name / "work").exists()


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "zero3-half"])
def test_the_checkpoint_is_whole_and_the_same(two: Path, one: Path, name: str) -> None:
    found, expected = weights(two / name), weights(one / name)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-5, msg=key)


def test_the_proof_was_made(two: Path) -> None:
    for name in SCENARIOS:
        first, second = (json.loads((two / f"{name}.{index}.json").read_text(encoding="utf-8")) for index in (0, 1))
        assert first == second
        projector = "" if name == "zero3-layers-alone" else " and 4 tensors of the projector"
        assert f"in 2 of 4 decoder layers{projector} received finite gradients" in first["proof"]


def test_every_layer_ran_compiled(two: Path) -> None:
    said = json.loads((two / "zero3-compiled.0.json").read_text(encoding="utf-8"))["compiled"]
    assert said == ["6 of 6 layers run compiled, as 3 kinds"]
