"""Parts of a benchmark that run in a process of their own, and print one JSON line at the end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any


def run_apart(name: str, command: list[str], limit: float) -> dict[str, Any]:
    """Return what a Python command printed last, with how long its process took, or its error."""
    if limit <= 0:
        return {"name": name, "error": "not begun: the time was over"}
    begin = time.perf_counter()
    try:
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"name": name, "error": f"not done within {limit:g} s"}
    sys.stderr.write(done.stderr)
    seconds = {"process_s": round(time.perf_counter() - begin, 1)}
    if done.returncode == 0:
        return {**json.loads(done.stdout.splitlines()[-1]), **seconds}
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return {"name": name, "error": said[-1] if said else f"ended with {done.returncode}", **seconds}
