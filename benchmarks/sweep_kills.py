#!/usr/bin/env python3
"""Check that a sweep which is killed and resumed ends as one that never was: the same table, answers and weights.

    python benchmarks/sweep_kills.py SWEEP.yaml --out kills --times 2 --rounds 3

The sweep runs once undisturbed. Then, each round in a folder of its own, its whole process group is killed
`--times` times (SIGKILL, so that nothing can tidy up), each after a time drawn by `--seed` of up to that of the
undisturbed one divided by `--times`, and the sweep is begun again each time. Compared byte for byte are `sweep.json`
and the documents of every run, without what a clock or the allocator measures (seconds, peak memory), its answers and
its weights. Prints a line of JSON a round; ends with 1 where a round differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MEASURED = {"seconds", "train_seconds", "peak_memory_gib"}
FILES = ("runs/*/eval/**/*.predictions.jsonl", "runs/*/*/*.safetensors")
DOCUMENTS = ("sweep.json", "runs/*/*.json", "runs/*/eval/**/*.json")
# It says when and how long alone.
TIMED = "run.json"


def begin(sweep: Path, out: Path) -> subprocess.Popen[bytes]:
    """Start the sweep in a process group of its own."""
    log = (out.parent / f"{out.name}.log").open("ab")
    command = [sys.executable, "-m", "striate", "sweep", str(sweep), "--out", str(out)]
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def kill(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Kill the process group after `seconds`; return whether it was still at work."""
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def without_measured(value: Any) -> Any:
    """Return a document without what differs from one time to another."""
    if isinstance(value, dict):
        return {name: without_measured(one) for name, one in value.items() if name not in MEASURED}
    return [without_measured(one) for one in value] if isinstance(value, list) else value


def made(out: Path) -> dict[str, str]:
    """Return the hash of each thing that must be the same."""
    contents = {path: path.read_bytes() for form in FILES for path in out.glob(form)}
    for path in (path for form in DOCUMENTS for path in out.glob(form) if path.name != TIMED):
        told = json.dumps(without_measured(json.loads(path.read_bytes())))
        contents[path] = told.replace(str(out.absolute()), "OUT").encode()
    return {str(path.relative_to(out)): hashlib.sha256(content).hexdigest() for path, content in contents.items()}


def disturbed(sweep: Path, out: Path, moments: list[float]) -> list[float]:
    """Run the sweep to its end, killed at each of the `moments`; return those that came before its end."""
    came = [seconds for seconds in moments if kill(begin(sweep, out), seconds)]
    begin(sweep, out).wait()
    return came


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    code = begin(args.sweep, args.out / "whole").wait()
    whole_seconds, whole, draw = time.perf_counter() - begun, made(args.out / "whole"), random.Random(args.seed)
    print(json.dumps({"whole": round(whole_seconds, 1), "ended_with": code, "compared": len(whole)}), flush=True)
    same = True
    for number in range(args.rounds):
        out = args.out / f"round-{number}"
        killed = disturbed(args.sweep, out, [draw.uniform(0, whole_seconds / args.times) for _ in range(args.times)])
        other = made(out)
        differ = sorted(name for name in whole.keys() | other.keys() if whole.get(name) != other.get(name))
        told = {"round": number, "killed_after": [round(one, 1) for one in killed], "compared": len(other)}
        print(json.dumps({**told, "differ": differ}), flush=True)
        same = same and not differ
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
