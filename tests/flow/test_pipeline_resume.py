"""A run that was stopped goes on to the same weights: Ctrl-C from within, and signals to a real process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from striate.artifacts import TrainRecord, read_document
from striate.cli import app
from striate.config import RunConfig
from striate.pipeline import Flow

LONG = ["train.epochs=6", "train.lr=1e-3", "evaluate.packs=[]"]


def losses(run: Path) -> list[tuple[int, float, float]]:
    lines = (run / "train_log.jsonl").read_text().splitlines()
    return [(row["step"], row["loss"], row["lr"]) for row in map(json.loads, lines)]


def same(one: Path, other: Path, name: str) -> bool:
    return (one / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_interrupted_in_training(
    run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path, method: str
) -> None:
    config = run_config(f"train.method={method}", "train.epochs=2", "evaluate.packs=[]")
    Flow(config, tmp_path / "whole", progress=listener()).everything()

    def stop(step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Flow(config, tmp_path / "cut", progress=listener(stop)).everything()
    assert not (tmp_path / "cut" / "checkpoint").exists()
    assert not (tmp_path / "cut" / "train.json").exists()
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["stages"]["train"]["status"] == "failed"
    heard = listener()
    Flow(config, tmp_path / "cut", progress=heard).everything()
    assert heard.said[:3] == ["analyze: up to date", "select: up to date", "going on from step 3 of 8"]
    name = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    assert same(tmp_path / "whole", tmp_path / "cut", f"checkpoint/{name}")
    assert same(tmp_path / "whole", tmp_path / "cut", "pruned/model.safetensors")
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    records = [read_document(tmp_path / run / "train.json", TrainRecord) for run in ("whole", "cut")]
    assert (records[0].first_loss, records[0].last_loss) == (records[1].first_loss, records[1].last_loss)
    assert not (tmp_path / "cut" / ".training").exists()


def test_other_settings_after_an_interruption(
    run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path
) -> None:
    def stop(step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Flow(run_config(), tmp_path / "run", progress=listener(stop)).everything()
    other = run_config("train.lr=0.02", "evaluate.packs=[]")
    Flow(other, tmp_path / "run", progress=listener(), overwrite=True).everything()
    Flow(other, tmp_path / "fresh", progress=listener()).everything()
    assert same(tmp_path / "run", tmp_path / "fresh", "checkpoint/adapter_model.safetensors")
    assert losses(tmp_path / "run") == losses(tmp_path / "fresh")


def test_signals_to_a_real_process(
    run_config: Callable[..., RunConfig], run_yaml: Path, listener: Any, tmp_path: Path
) -> None:
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    settings = [part for setting in LONG for part in ("--set", setting)]
    arguments = ["run", str(run_yaml), "--out", str(cut), *settings]
    done = _interrupted_after(arguments, cut, 3)
    assert done.returncode == 130, done.stderr
    assert done.stderr.strip().splitlines()[-1] == f"stopped; the same command with --out {cut} goes on from here"
    assert "Traceback" not in done.stderr
    reached = len(losses(cut))
    assert 3 <= reached < 24
    assert not (cut / "checkpoint").exists()
    assert _killed_after(arguments, cut, reached + 3) == -signal.SIGKILL
    assert not (cut / "checkpoint").exists()
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "analyze: up to date" in shown.stdout
    assert "going on from step" in shown.stdout
    Flow(run_config(*LONG), whole, progress=listener()).everything()
    assert same(whole, cut, "checkpoint/adapter_model.safetensors")
    assert same(whole, cut, "pruned/model.safetensors")
    assert losses(whole) == losses(cut)
    assert [path.name for path in cut.iterdir() if path.name.startswith(".")] == []


def _interrupted_after(arguments: list[str], run: Path, steps: int) -> subprocess.CompletedProcess[str]:
    """Start the command line, press Ctrl-C once `steps` steps are logged, and return how it ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "striate", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell that runs the tests in the background has them, and what they start, ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    if _logged(run, steps, lambda: process.poll() is not None):
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def _killed_after(arguments: list[str], run: Path, steps: int) -> int:
    """Run the command line in a child process, kill it once `steps` steps are logged, and return how it ended."""
    # A fork has imported everything.
    child = os.fork()
    if not child:
        try:
            CliRunner().invoke(app, arguments)
        finally:
            os._exit(0)
    ends: list[int] = []

    def ended() -> bool:
        pid, status = os.waitpid(child, os.WNOHANG)
        ends.extend([status] * bool(pid))
        return bool(pid)

    if _logged(run, steps, ended):
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(ends[0] if ends else os.waitpid(child, 0)[1])


def _logged(run: Path, steps: int, ended: Callable[[], bool]) -> bool:
    """Wait until `steps` steps are logged; return whether they are before the process ends."""
    log, deadline = run / "train_log.jsonl", time.monotonic() + 120
    while not ended() and time.monotonic() < deadline:
        if log.is_file() and log.read_text().count("\n") >= steps and (run / ".training").exists():
            return True
        time.sleep(0.02)
    return False
