"""A run of the whole flow on the tiny LLaVA: its config, its progress, and what its models said before saving."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from striate.config import RunConfig, parse_config

# A hang, on however busy a machine.
SECONDS = 900
COSTLY = {"test_scale_out.py", "test_scale_deepspeed.py", "test_quickstart_flow.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put first what shares a costly beginning: xdist's workers part what is left last, and each would make its own."""
    items.sort(key=lambda item: item.path.name not in COSTLY)


class Listener:
    """A progress that remembers what was said, not of settings without effect; calls `on_step` after every step."""

    def __init__(self, on_step: Callable[[int], None] | None = None) -> None:
        self.said: list[str] = []
        self.steps = 0
        self.on_step = on_step

    def say(self, text: str) -> None:
        if not text.startswith("no effect: "):
            self.said.append(text)

    @contextmanager
    def track(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        def advance(count: int) -> None:
            if label == "train":
                self.steps += count
                if self.on_step:
                    self.on_step(self.steps)

        yield advance


def raw_config(model: Path, pack: Path) -> dict[str, Any]:
    """Return a run config of a few seconds, as YAML would give it."""
    return {
        "model": {"path": str(model)},
        "data": {"train": [str(pack)]},
        "analyze": {"samples": 6},
        "select": {"region": "uniform:50%"},
        "train": {
            "lr": 1e-2,
            "batch_size": 4,
            "max_length": 128,
            "save_steps": 1,
            "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
        },
        # What takes least time.
        "prune": {"remove": 1, "scorer": "modality-block-influence", "compensate": "none"},
        "evaluate": {"packs": [str(pack)], "limit": 8, "max_new_tokens": 4, "bootstrap": 100},
        "machine": {"micro_batch": 4, "eval_batch": 4, "device": "cpu"},
    }


@pytest.fixture(scope="session")
def run_config(_saved_llava: Path, saved_pack: Path) -> Callable[..., RunConfig]:
    """A function that returns the run config with overrides applied."""
    return lambda *overrides: parse_config(raw_config(_saved_llava, saved_pack), overrides)


@pytest.fixture(scope="session")
def shared_run_yaml(_saved_llava: Path, saved_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RUN.yaml of the tiny run, to be read only."""
    path = tmp_path_factory.mktemp("shared") / "RUN.yaml"
    path.write_text(yaml.safe_dump(raw_config(_saved_llava, saved_pack)), encoding="utf-8")
    return path


@pytest.fixture
def run_yaml(shared_run_yaml: Path, tmp_path: Path) -> Path:
    """RUN.yaml of the tiny run."""
    return Path(shutil.copy(shared_run_yaml, tmp_path))


@pytest.fixture(scope="session")
def run_of_three(run_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its start, tuned and pruned model, none of which says the same; to be read only."""
    from striate.pipeline import Flow

    out = tmp_path_factory.mktemp("three") / "run"
    config = run_config("prune.scorer=top", "select.region=ids:1", "train.max_steps=2", "train.lr=0.1")
    flow = Flow(config, out, progress=Listener())
    flow.select()
    flow.train()
    flow.prune()
    return out


@pytest.fixture(scope="session")
def listener() -> type[Listener]:
    """The class of progress that remembers."""
    return Listener


def _start(worker: Path, folder: Path, names: tuple[str, ...], **environment: str) -> None:
    """Run a worker's scenarios on two processes; kill both and say what they printed if they don't end in time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    running = [
        subprocess.Popen(
            [sys.executable, str(worker), str(folder), *names],
            env={**os.environ, **shared, "RANK": str(index), "LOCAL_RANK": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    printed = []
    try:
        printed = [process.communicate(timeout=SECONDS)[0] for process in running]
    except subprocess.TimeoutExpired:
        pytest.fail(f"the processes hang after {SECONDS} s")
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(printed)


@pytest.fixture(scope="session")
def two_processes() -> Callable[..., None]:
    """A function that runs a worker's scenarios on two processes: worker, folder, names, environment."""
    return _start


@pytest.fixture(scope="session")
def tuned_run(run_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has tuned for two steps and pruned one layer, and asked nothing: to be read only."""
    from striate.pipeline import Flow

    out = tmp_path_factory.mktemp("tuned") / "run"
    Flow(run_config("train.max_steps=2", "evaluate.packs=[]", "analyze.samples=2"), out).everything()
    return out
