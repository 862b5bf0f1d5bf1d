"""A fault at any file operation of a run costs nothing: the same call goes on to the same files, and none is left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fault_kit import FAULTS

WORKER = Path(__file__).with_name("fault_worker.py")


def meet(folder: Path, *arguments: str) -> None:
    command = [sys.executable, str(WORKER), str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.attack
@pytest.mark.parametrize("fault", FAULTS)
def test_every_operation(fault: str, tmp_path: Path) -> None:
    meet(tmp_path, "--faults", fault)
