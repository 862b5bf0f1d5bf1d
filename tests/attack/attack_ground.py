"""What every case starts from: a tiny model, a pack, a run config, a finished run and one that was stopped."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

TESTS = Path(__file__).resolve().parents[1]
for folder in ("models", "flow"):
    if str(TESTS / folder) not in sys.path:
        sys.path.append(str(TESTS / folder))


def _builders() -> ModuleType:
    spec = importlib.util.spec_from_file_location("attack_builders", TESTS / "conftest.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


builders = _builders()


def raw_config(root: Path) -> dict[str, Any]:
    """Return the config of a run of two seconds."""
    return {
        "model": {"path": str(root / "model")},
        "data": {"train": [str(root / "pack")]},
        "analyze": {"samples": 2, "scorers": ["modality-block-influence"]},
        "select": {"region": "uniform:50%"},
        "train": {
            "lr": 1e-2,
            "batch_size": 2,
            "max_length": 128,
            "save_steps": 1,
            "lora": {"r": 2, "alpha": 4, "dropout": 0.1},
        },
        "prune": {"remove": 1},
        "evaluate": {"packs": [str(root / "pack")], "limit": 4, "max_new_tokens": 2, "bootstrap": 100},
        "machine": {"micro_batch": 2, "eval_batch": 4, "device": "cpu"},
    }


class Stop:
    """A progress that says nothing and stops training after a step."""

    def __init__(self, step: int) -> None:
        self.step, self.done = step, 0

    def say(self, text: str) -> None:
        """Say nothing."""

    @contextmanager
    def track(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Yield a function that stops at the step."""

        def advance(count: int) -> None:
            self.done += count * (label == "train")
            if self.done == self.step:
                raise KeyboardInterrupt

        yield advance


def preload() -> None:
    """Import what cases need, so that they fork from a process that has it."""
    import striate.cli.app
    import striate.pipeline.flow
    import striate.stages.train  # noqa: F401


def build_quickly(root: Path) -> None:
    """Write model, pack and run.yaml to `root`."""
    loaded = builders.build_loaded()
    loaded.model.save_pretrained(root / "model")
    loaded.processor.save_pretrained(root / "model")
    builders.build_pack(root / "pack", 4)
    (root / "run.yaml").write_text(yaml.safe_dump(raw_config(root)), encoding="utf-8")


def build(root: Path) -> None:
    """Write model, pack, run.yaml, the finished run `done` and the stopped one `stopped` to `root`."""
    from striate.config import load_config
    from striate.pipeline import Flow

    build_quickly(root)
    config = load_config(root / "run.yaml")
    Flow(config, root / "done").everything()
    with suppress(KeyboardInterrupt):
        Flow(config, root / "stopped", progress=Stop(2)).everything()
