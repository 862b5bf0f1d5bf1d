"""Two GPUs and NCCL, launched with the shipped configs: the same losses as one process, save, resume."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "accelerate"
SECONDS = 240
# How near losses and weights of each way come to one process's. Sums over two GPUs round differently.
WAYS = {"ddp": 1e-4, "fsdp2": 1e-4, "zero3": 1e-4}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


def run_yaml(folder: Path, model: Path, pack: Path, compiled: str = "off") -> Path:
    config = {
        "model": {"path": str(model)},
        "data": {"train": [str(pack)]},
        "select": {"region": "ids:1,3"},
        "train": {
            "lr": 1e-2,
            "batch_size": 4,
            "epochs": 2,
            "max_length": 128,
            "save_steps": 1,
            "lora": {"r": 4, "alpha": 8, "dropout": 0.0},
        },
        "machine": {"micro_batch": 2, "dtype": "float32", "compile": compiled},
    }
    folder.mkdir()
    path = folder / "RUN.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def striate(*words: str, launcher: tuple[str, ...] = ()) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "striate", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def launched(way: str) -> tuple[str, ...]:
    return ("-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{way}.yaml"), "--num_processes", "2")


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "train_log.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def saved_llava(_saved_llava: Path) -> Path:
    """The folder of a tiny LLaVA, which these tests only read."""
    return _saved_llava


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, saved_llava: Path, saved_pack: Path) -> Path:
    """The run folder of one process."""
    folder = tmp_path_factory.mktemp("several") / "alone"
    path = run_yaml(folder, saved_llava, saved_pack)
    striate("select", str(path), "--out", str(folder / "run"))
    striate("train", "--out", str(folder / "run"))
    return folder / "run"


@pytest.mark.parametrize("compiled", ["off", "on"])
@pytest.mark.parametrize("way", WAYS)
def test_shipped_configs_train_as_one_process(
    alone: Path, tmp_path: Path, saved_llava: Path, saved_pack: Path, way: str, compiled: str
) -> None:
    if way == "zero3" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed (the extra `deepspeed`)")
    path, run = run_yaml(tmp_path / "two", saved_llava, saved_pack, compiled), tmp_path / "two" / "run"
    striate("select", str(path), "--out", str(run))
    said = striate("train", "--out", str(run), launcher=launched(way))
    assert compiled == "off" or re.search(r"(\d+) of \1 layers run compiled", said), said
    mine, wanted = rows(run), rows(alone)
    assert len(mine) == len(wanted) > 2
    for key in ("loss", "grad_norm"):
        found, expected = (torch.tensor([row[key] for row in some], dtype=torch.float64) for some in (mine, wanted))
        torch.testing.assert_close(found, expected, rtol=WAYS[way], atol=WAYS[way])
    found_weights, expected_weights = (
        load_file(str(one / "checkpoint" / "adapter_model.safetensors")) for one in (run, alone)
    )
    assert found_weights.keys() == expected_weights.keys()
    for name, tensor in expected_weights.items():
        torch.testing.assert_close(found_weights[name], tensor, rtol=2e-2, atol=1e-3, msg=name)
    assert "train: up to date" in striate("train", "--out", str(run))
