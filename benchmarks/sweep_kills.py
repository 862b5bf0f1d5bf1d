#!/usr/bin/env python3
"""Check that a sweep which is killed and resumed ends as one that never was: the same table, answers and weights.

    python benchmarks/sweep_kills.py SWEEP.yaml --out kills --times 2 --rounds 3

The sweep runs once undisturbed. Then, each round in a folder of its own, its whole process group is killed
`--times` times (SIGKILL, so that nothing can tidy up) at random places, and the sweep is begun again each time. A
place, drawn by `--seed`, is a number of files that the folder has by then, of those that it has in the end, and up to
a second after. Compared byte for byte are `sweep.json` and the documents of every run, without what a clock or the
allocator measures (seconds, peak memory) and what asking took, its answers and its weights. Prints a line of JSON a
round; ends with 1 where a round differs.
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

# `asking` counts what was asked in the last process alone.
MEASURED = {"seconds", "train_seconds", "peak_memory_gib", "asking"}
FILES = ("runs/*/eval/**/*.predictions.jsonl", "runs/*/*/*.safetensors")
DOCUMENTS = ("sweep.json", "runs/*/*.json", "runs/*/eval/**/*.json")
# It says when and how long alone.
TIMED = "run.json"


def begin(sweep: Path, out: Path) -> subprocess.Popen[bytes]:
    """Start the sweep in a process group of its own."""
    log = (out.parent / f"{out.name}.log").open("ab")
    command = [sys.executable, "-m", "striate", "sweep", str(sweep), "--out", str(out)]
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def count(out: Path) -> int:
    """Return how many files there are."""
    return sum(len(names) for _, _, names in os.walk(out))


def kill(process: subprocess.Popen[bytes], out: Path, files: int, later: float) -> bool:
    """Kill the process group some seconds after there are so many files; return whether it was still at work."""
    while process.poll() is None and count(out) < files:
        time.sleep(0.01)
    try:
        process.wait(later)
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


def disturbed(sweep: Path, out: Path, places: list[tuple[int, float]]) -> list[int]:
    """Run the sweep to its end, killed at each of the `places`; return the files of those that came before its end."""
    came = [files for files, later in places if kill(begin(sweep, out), out, files, later)]
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
    code = begin(args.sweep, args.out / "whole").wait()
    whole, files, draw = made(args.out / "whole"), count(args.out / "whole"), random.Random(args.seed)
    print(json.dumps({"files": files, "ended_with": code, "compared": len(whole)}), flush=True)
    same = True
    for number in range(args.rounds):
        out = args.out / f"round-{number}"
        places = sorted((draw.randrange(files), draw.random()) for _ in range(args.times))
        killed = disturbed(args.sweep, out, places)
        other = made(out)
        differ = sorted(name for name in whole.keys() | other.keys() if whole.get(name) != other.get(name))
        told = {"round": number, "killed_at": killed, "compared": len(other)}
        print(json.dumps({**told, "differ": differ}), flush=True)
        same = same and not differ
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
