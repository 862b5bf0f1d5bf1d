"""Tasks that several processes share: each takes what nobody has taken yet, once the files that it needs are there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Task:
    """Something to do.

    Attributes:
        name: of the file of what is found, without .json; its first word says what is done.
        given: what it is done with.
        needs: files in the same folder that must be there before.
        after: tasks that must have ended before, well or not.
    """

    name: str
    given: tuple[Any, ...] = ()
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def launch(out: Path, jobs: int, devices: int, minutes: float, *, join: bool = False) -> None:
    """Run this script again as `jobs` processes that work until nothing is left, `devices` GPUs in turn; wait for them.

    What a stopped process had taken is free again, unless they `join` others that are at work in the same folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    for claim in () if join else out.glob("*.claim"):
        if not (out / f"{claim.name.removesuffix('.claim')}.json").exists():
            claim.unlink()
            (out / f"{claim.name.removesuffix('.claim')}.failed").unlink(missing_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // (2 * max(1, jobs))))
    command = [sys.executable, *sys.argv, "--until", str(time.time() + 60 * minutes)]
    running = []
    for index in range(jobs):
        place = {"CUDA_VISIBLE_DEVICES": str(index % devices)} if devices > 1 else {}
        environment = {"OMP_NUM_THREADS": threads, **os.environ, **place}
        with (out / f"process-{os.getpid()}-{index}.log").open("ab") as log:
            running.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment))
    for process in running:
        process.wait()


def work(out: Path, tasks: Callable[[], Sequence[Task]], do: Callable[[Task], dict[str, Any]], until: float) -> None:
    """Do what is not done and not taken, in order, until nothing more can be done or time is up.

    What there is to do is asked for again after each task: what one of them finds may say more. A task that fails
    leaves its traceback in NAME.failed and is not begun again before the next `launch`.
    """
    while time.time() < until:
        known = tasks()
        busy = [task for task in known if (out / f"{task.name}.claim").exists() and not _ended(out, task.name)]
        left = [task for task in known if not (out / f"{task.name}.claim").exists()]
        ready = [task for task in left if _ready(out, task)]
        if ready and _claimed(out / f"{ready[0].name}.claim"):
            _done(out, ready[0], do)
        elif not busy:
            return
        else:
            time.sleep(0.2)


def _done(out: Path, task: Task, do: Callable[[Task], dict[str, Any]]) -> None:
    began = time.perf_counter()
    try:
        found = do(task)
    except Exception:
        (out / f"{task.name}.failed").write_text(traceback.format_exc())
        print(f"{task.name}: failed", flush=True)
        return
    seconds = round(time.perf_counter() - began, 1)
    part = out / f"{task.name}.part"
    part.write_text(json.dumps({**found, "name": task.name, "seconds": seconds}))
    part.replace(out / f"{task.name}.json")
    print(f"{task.name}: {seconds} s", flush=True)


def _ready(out: Path, task: Task) -> bool:
    return all(_there(out / name) for name in task.needs) and all(_ended(out, name) for name in task.after)


def _ended(out: Path, name: str) -> bool:
    return any((out / f"{name}.{end}").exists() for end in ("json", "failed"))


def _there(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _claimed(path: Path) -> bool:
    """Return whether this process is the first to take what `path` stands for."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
