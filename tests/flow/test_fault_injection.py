"""A fault at any file operation of a run costs nothing: the same call goes on to the same files, and none is left."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_kit import FAULTS, Fault, FileOperations
from fault_worker import contents, quickest_config

from striate.config import RunConfig
from striate.errors import ArtifactError
from striate.pipeline import Flow

WORKER = Path(__file__).with_name("fault_worker.py")


def meet(folder: Path, *arguments: str) -> None:
    command = [sys.executable, str(WORKER), str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_faults_one_after_another(tmp_path: Path) -> None:
    """A disk that is full at the checkpoint, Ctrl-C as it gets its name, and a full disk at the pruned model.

    Every other operation, and other faults, are marked `attack`.
    """
    config, out = quickest_config(tmp_path), tmp_path / "run"
    Flow(config, out).everything()
    whole = contents(out)
    shutil.rmtree(out)
    faults: list[tuple[str, Fault, type[BaseException]]] = [
        (r"^save \.checkpoint.*safetensors", "full", ArtifactError),
        (r"^rename checkpoint$", "interrupt", KeyboardInterrupt),
        (r"^write \.pruned.*config.json", "full", ArtifactError),
    ]
    for at, fault, error in faults:
        operations = FileOperations(out, at, fault)
        with pytest.raises(error) as caught, operations.watched():
            Flow(config, out).everything()
        assert isinstance(operations.at, int), f"no operation like {at}"
        assert error is KeyboardInterrupt or "No space left on device" in str(caught.value)
    Flow(config, out).everything()
    found = contents(out)
    assert found.keys() == whole.keys()
    assert [name for name in whole if found[name] != whole[name]] == []


def test_a_run_folder_that_is_moved_in_training_comes_back_no_half(
    run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path
) -> None:
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"

    def move(step: int) -> None:
        if step == 2:
            out.rename(elsewhere)

    config = run_config("evaluate.packs=[]", "prune.remove=0")
    with pytest.raises(ArtifactError, match="was moved or removed while striate worked in it"):
        Flow(config, out, progress=listener(move)).everything()
    assert not out.exists()
    heard = listener()
    flow = Flow(config, elsewhere, progress=heard)
    flow.select()
    flow.train()
    assert any(line.startswith("going on from step") for line in heard.said)


@pytest.mark.attack
@pytest.mark.parametrize("fault", FAULTS)
def test_every_operation(fault: str, tmp_path: Path) -> None:
    meet(tmp_path, "--faults", fault)
