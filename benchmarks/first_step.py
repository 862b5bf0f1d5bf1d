#!/usr/bin/env python3
"""Count the seconds from the command to the first step of a training, and the most memory on the way, by process.

    python benchmarks/large_data.py DATA
    python benchmarks/first_step.py DATA/train.jsonl MODEL --workers 1

MODEL is a small one, so that what the data takes is seen. $STRIATE_CACHE is empty for a first run. Linux alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

GIB = 2**30
WATCHED = 0.05


def measure(data: str, model: str, out: Path, more: list[str]) -> dict[str, float]:
    """Return seconds to the first step and to the end, CPU seconds, and the most GiB of the command and its workers."""
    shutil.rmtree(out, ignore_errors=True)
    settings = {
        "train.max_steps": "2",
        "train.batch_size": "16",
        "train.max_length": "2048",
        "select.region": "uniform:50%",
        "machine.device": "cpu",
    }
    config = out.with_suffix(".yaml")
    config.write_text(f"model: {{path: {model}}}\ndata: {{train: [{data}]}}\nevaluate: {{packs: []}}\n")
    sets = [f"{key}={value}" for key, value in settings.items()] + more
    arguments = [part for text in sets for part in ("--set", text)]
    subprocess.run(
        [sys.executable, "-m", "striate", "select", str(config), "--out", str(out), *arguments],
        check=True,
        capture_output=True,
        env={**os.environ, "STRIATE_CACHE": f"{out}-select"},
    )
    shutil.rmtree(f"{out}-select", ignore_errors=True)
    begin, first, peak, children = time.perf_counter(), 0.0, 0, 0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "striate", "train", str(config), "--out", str(out), *arguments]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = out / "train_log.jsonl"
    while running.poll() is None:
        own = _resident(running.pid)
        peak, children = max(peak, own), max(children, _family(running.pid) - own)
        if not first and log.is_file() and log.stat().st_size:
            first = time.perf_counter() - begin
        time.sleep(WATCHED)
    if running.returncode:
        raise SystemExit(running.communicate()[0])
    whole = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = {"first_step": first, "cpu": cpu, "whole": whole, "peak_gib": peak / GIB, "children_gib": children / GIB}
    return {name: round(value, 2) for name, value in found.items()}


def _resident(pid: int) -> int:
    """Return the bytes that a process alone holds: pages of mapped files, which the system may drop, are not in it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def _family(pid: int) -> int:
    try:
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return _resident(pid) + sum(_family(int(child)) for child in below)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("model")
    parser.add_argument("--workers", default="0")
    parser.add_argument("--out", type=Path, default=Path("first-step-run"))
    parser.add_argument("--set", action="append", default=[], dest="settings")
    given = parser.parse_args()
    more = [f"machine.workers={given.workers}", *given.settings]
    print(json.dumps({"workers": given.workers, **measure(given.data, given.model, given.out, more)}))
