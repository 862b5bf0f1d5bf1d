"""Bounds what a chat template may take: it is a program that comes with a model, and may loop for ever."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import resources

from striate.errors import ModelError

SECONDS = 10
MOST_CHARACTERS = 10_000_000
# Patience with a busy machine: the trial's own limit is of processor time.
_PATIENCE = 120
_TRIED = "trial_render.py"
_TOO_LARGE = 3
_TRIAL = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A square."}]},
    {"role": "user", "content": [{"type": "text", "text": "Which colour?"}]},
]


class OverTime(BaseException):
    """Raised within a template that takes too long; no handler of ordinary errors may catch it."""


def check_template(template: str) -> None:
    """Raise for a template that takes too much for three short turns.

    It is tried in a process of its own, whose time and memory are bounded; other faults are left to whoever renders.

    Raises:
        ModelError: it does.
    """
    if problem := _tried(template):
        raise _refused(problem)


@contextmanager
def bounded_time() -> Iterator[None]:
    """Bound the time of what is rendered meanwhile, in whatever thread.

    Raises:
        ModelError: it took longer.
    """
    lock, thread = threading.Lock(), ctypes.c_ulong(threading.get_ident())
    over, done = False, False

    def stop() -> None:
        nonlocal over
        with lock:
            if not done:
                over = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(OverTime))

    timer = threading.Timer(SECONDS, stop)
    timer.daemon = True
    timer.start()
    try:
        try:
            yield
        finally:
            with lock:
                done = True
            timer.cancel()
        if over:
            # Too late to be raised by itself: what is pending is taken back.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None)
            raise OverTime
    except OverTime as error:
        raise _refused(f"more than {SECONDS} s for one conversation") from error


@lru_cache(maxsize=64)
def _tried(template: str) -> str:
    """Return what a template takes too much of for three short turns; empty if all is well."""
    code = resources.files("striate.data.chat_template").joinpath(_TRIED).read_text(encoding="utf-8")
    task = json.dumps({"template": template, "messages": _TRIAL, "seconds": SECONDS, "most": MOST_CHARACTERS})
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", code], input=task.encode(), capture_output=True, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return f"more than {SECONDS} s for three short turns"
    # Where no process can be started, the time of each rendering is bounded all the same.
    except OSError:
        return ""
    if done.returncode == _TOO_LARGE:
        return f"more than {MOST_CHARACTERS} characters or 512 MiB for three short turns"
    return f"more than {SECONDS} s for three short turns" if done.returncode < 0 else ""


def _refused(problem: str) -> ModelError:
    return ModelError(
        f"the model's chat template takes {problem}",
        "a template that renders a conversation at once: it is a program, and this one may have no end",
        "get the template again, or set processor.chat_template to another and save the processor",
    )
