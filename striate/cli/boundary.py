"""The boundary of the command line: every exception ends as a line, a place and an exit code, never as a traceback."""

from __future__ import annotations

import errno
import os
import platform
import re
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer
from rich.text import Text

from striate.cli.console import ERR
from striate.errors import StriateError, first_line
from striate.models.io.image_token_count import other_count
from striate.printable import clipped, printable
from striate.version import __version__

BUG = 70
"""The exit code of what nobody foresaw (`EX_SOFTWARE`); a person's mistake has 1, one of usage 2, Ctrl-C 130."""

DEBUG: ContextVar[bool] = ContextVar("debug", default=False)
"""Whether tracebacks are shown: `striate --debug VERB`."""

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "pillow", "numpy", "pydantic")
_PLACES = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ENOTDIR}
_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_HANDLES = {errno.EMFILE, errno.ENFILE}
_NO_MEMORY = ("OutOfMemoryError", "MemoryError")
# How a process learns by NCCL or gloo that another one of its training is gone; libraries of the hub have numbers too.
_LOST_TEXT = re.compile(
    r"Connection (closed|reset) by peer|gloo/transport|NCCL (error|communicator)|remote process exited"
)
_OTHERS = re.compile(r"os error|invalid usage|EADDRINUSE|[Uu]nable to find")
_ADVICE = {
    **dict.fromkeys(_PLACES, "check that path and its permissions"),
    **dict.fromkeys(_ROOM, "free some space, raise the limit on file sizes, or choose another folder with --out"),
    **dict.fromkeys(_HANDLES, "raise the limit on open files (ulimit -n), or lower machine.workers"),
}


@contextmanager
def guard(out: Path | None) -> Iterator[None]:
    """Turn every exception into a message and an exit code.

    Errors that a person can fix have exit code 1, and so has a machine without room, rights or memory. Ctrl-C ends with
    word of how to go on in the run folder `out`. All else is a bug: its report is saved, and the code is `BUG`.
    """
    try:
        yield
    except KeyboardInterrupt:
        hint = f"; the same command with --out {out} goes on from here" if out else ""
        ERR.print(f"stopped{hint}", soft_wrap=True)
        raise typer.Exit(130) from None
    except Exception as error:
        if isinstance(error, BrokenPipeError) or type(error).__module__.split(".")[0] in ("click", "typer"):
            raise
        raise typer.Exit(_tell(error)) from None


def _tell(error: Exception) -> int:
    """Print what `error` says and return its exit code."""
    if DEBUG.get():
        ERR.print("".join(traceback.format_exception(error)), soft_wrap=True)
    said = error if isinstance(error, StriateError) else _of_the_machine(error) or other_count(error)
    if said is not None:
        ERR.print(Text.assemble(("error:", "bold red"), f" {said}"), soft_wrap=True)
        return 1
    report = _saved(_report(error))
    place = f"a report is in {report}" if report else "no folder took its report"
    what = clipped(f"{type(error).__name__}: {' '.join(first_line(error).split())}")
    ERR.print(f"bug: {what} (not foreseen); {place}; --debug shows the traceback", style="bold red", soft_wrap=True)
    return BUG


def _joined() -> bool:
    """Return whether this process has joined others of a training."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()


def _of_the_machine(error: BaseException) -> StriateError | None:
    """Return the error of a machine that lacks memory, room or rights; None if `error` says nothing of the kind."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {*_NO_MEMORY} or "can't allocate memory" in str(error):
        return StriateError(
            f"not enough memory: {first_line(error)}",
            "a model and batches that fit; `striate inspect MODEL` forecasts what they take",
            "lower machine.micro_batch, train.max_length or evaluate.batch_size, or take a larger machine",
        )
    if _joined() and _LOST_TEXT.search(str(error)) and not _OTHERS.search(str(error)):
        cause = str(error).partition("Last error:\n")[2].strip() or first_line(error)
        return StriateError(
            f"another process of this training may have ended, or can't be reached: {cause}",
            "processes that all run until the end, and see each other",
            "see what that process and the launcher say; the same command goes on from the last checkpoint",
        )
    # Rust's libraries tell the system's error by its number in their text.
    named = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(named[1]) if named else None
    if number in _ADVICE:
        place = getattr(error, "filename", None)
        reason = os.strerror(number or 0)
        given = f"{reason}: {place}" if place else f"{reason}: {first_line(error)}"
        return StriateError(given, "files and folders that the system lets striate read and write", _ADVICE[number])
    return _of_the_machine(error.__cause__) if error.__cause__ else None


def _report(error: Exception) -> str:
    """Return the report of a bug: the command, the versions and the traceback, all of it printable."""
    versions = [f"striate {__version__}", f"Python {sys.version.split()[0]}", platform.platform()]
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    command = shlex.join(["striate", *sys.argv[1:]])
    return printable("\n".join([command, *versions, "", *traceback.format_exception(error)]))


def _saved(report: str) -> Path | None:
    """Return the file that holds `report`: in the user's state folder, else in that of temporary files."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "striate"
    name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (state, Path(tempfile.gettempdir())):
        with suppress(OSError, ValueError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(report, encoding="utf-8")
            return folder / name
    return None
