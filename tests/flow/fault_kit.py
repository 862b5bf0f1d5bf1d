"""Faults injected into a process's own file operations: killed, interrupted or out of space at the k-th of them.

Operations are those that change something below one folder: opening for writing, writing, syncing, renaming, removing,
making folders, copying, and the whole-file writers of safetensors and torch, which Python does not see inside. A child
process meets the fault (`forked`), so that the parent keeps what it has imported.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial, wraps
from pathlib import Path
from typing import Any, Literal
from unittest import mock

Fault = Literal["kill", "torn", "full", "interrupt"]
FAULTS: tuple[Fault, ...] = ("kill", "torn", "full", "interrupt")
KILLED = 137
# What a full disk refuses; renaming and removing still work there.
GROWING = frozenset({"open", "write", "fsync", "mkdir", "copy", "save"})
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class FileOperations:
    """The file operations below `root`, in order; the one numbered `at` (from 0), or the first like it, meets `fault`.

    `kill` ends the process before the operation; `torn` does so too, but half of what a write writes is on the disk;
    `full` is a disk without room from then on; `interrupt` is Ctrl-C. Without `at` they are only noted, in `seen`.
    """

    def __init__(self, root: Path, at: int | str | None = None, fault: Fault = "kill") -> None:
        self.root, self.at, self.fault = str(Path(root).absolute()), at, fault
        self.seen: list[str] = []

    def meet(self, name: str, path: Any, torn: Callable[[], Any] | None = None) -> None:
        """Note an operation on `path`, and let it fail where it is its turn; `torn` does half of it."""
        place = _whole(path)
        if place is None or not (place + os.sep).startswith(self.root + os.sep):
            return
        number = len(self.seen)
        self.seen.append(f"{name} {os.path.relpath(place, self.root)}")
        if isinstance(self.at, str) and re.search(self.at, self.seen[-1]):
            self.at = number
        if isinstance(self.at, str) or self.at is None or number < self.at:
            return
        if self.fault == "full" and name in GROWING:
            if number == self.at and torn:
                torn()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)
        if number > self.at:
            return
        if self.fault == "torn" and torn:
            torn()
        if self.fault in ("kill", "torn"):
            os._exit(KILLED)
        if self.fault == "interrupt":
            raise KeyboardInterrupt

    @contextmanager
    def watched(self) -> Iterator[FileOperations]:
        """Watch this process's file operations within the block."""
        with mock.patch.multiple(os, **self._system_calls()):
            patches = [mock.patch.object(place, "open", self._open(io.open)) for place in (builtins, io)]
            patches += [mock.patch.object(*self._writer(*place)) for place in _writers()]
            for patch in patches:
                patch.start()
            try:
                yield self
            finally:
                for patch in reversed(patches):
                    patch.stop()

    def _system_calls(self) -> dict[str, Any]:
        one = {"unlink": "remove", "remove": "remove", "rmdir": "remove", "mkdir": "mkdir", "truncate": "write"}
        calls = {name: self._call(getattr(os, name), word) for name, word in one.items()}
        calls |= {name: self._call(getattr(os, name), "rename", target=True) for name in ("rename", "replace")}
        calls |= {name: self._call(getattr(os, name), "link", target=True) for name in ("link", "symlink")}
        calls |= {"open": self._low_open(os.open), "fsync": self._call(os.fsync, "fsync"), "write": self._low_write()}
        if hasattr(os, "sendfile"):
            calls["sendfile"] = self._call(os.sendfile, "copy")
        return calls

    def _call(self, function: Callable[..., Any], word: str, target: bool = False) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            path, folder = args[1 if target else 0], kwargs.get("dst_dir_fd" if target else "dir_fd")
            self.meet(word, _joined(path, folder))
            return function(*args, **kwargs)

        return call

    def _low_open(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def low_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if flags & WRITING:
                self.meet("open", _joined(path, dir_fd))
            opened: int = function(path, flags, mode, dir_fd=dir_fd)
            return opened

        return low_open

    def _low_write(self) -> Callable[..., Any]:
        function = os.write

        def low_write(descriptor: int, content: Any) -> int:
            self.meet("write", descriptor, lambda: function(descriptor, content[: len(content) // 2]))
            return function(descriptor, content)

        return low_write

    def _open(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+"):
                return function(file, mode, *args, **kwargs)
            self.meet("open", file)
            return _Written(function(file, mode, *args, **kwargs), partial(self.meet, "write", file))

        return opened

    def _writer(self, module: Any, name: str, place: int) -> tuple[Any, str, Any]:
        function = getattr(module, name)

        @wraps(function)
        def write(*args: Any, **kwargs: Any) -> Any:
            def torn() -> None:
                function(*args, **kwargs)
                os.truncate(path, Path(path).stat().st_size // 2)

            path = args[place] if len(args) > place else kwargs.get("f")
            if isinstance(path, str | os.PathLike):
                self.meet("save", path, torn)
            return function(*args, **kwargs)

        return module, name, write


class _Written:
    """A file opened for writing, whose writes are operations; torn ones write their first half."""

    def __init__(self, file: Any, meet: Callable[..., None]) -> None:
        self._file, self._meet = file, meet

    def write(self, content: Any) -> Any:
        self._meet(torn=lambda: (self._file.write(content[: len(content) // 2]), self._file.flush()))
        return self._file.write(content)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Written:
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._file.__exit__(*error)

    def __iter__(self) -> Any:
        return iter(self._file)


def forked(work: Callable[[], Any], log: Path) -> int:
    """Return the exit code of a child process that did `work`; 1 with its traceback in `log` where that failed."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 0
    try:
        work()
    except BaseException as error:
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
        with suppress(OSError):
            log.write_text(traceback.format_exc(), encoding="utf-8")
    os._exit(code)


def faulty(work: Callable[[], Any], operations: FileOperations, log: Path) -> int:
    """Return the exit code of a child process that did `work` while its file `operations` were watched."""

    def watched() -> None:
        with operations.watched():
            work()

    return forked(watched, log)


def operations_of(work: Callable[[], Any], root: Path, log: Path) -> list[str]:
    """Return the file operations below `root` of `work`, which a child process does without a fault."""
    operations = FileOperations(root)
    listed = log.with_name(log.name + ".operations")

    def noting() -> None:
        with operations.watched():
            work()
        listed.write_text("\n".join(operations.seen), encoding="utf-8")

    code = forked(noting, log)
    assert code == 0, log.read_text(encoding="utf-8")
    return listed.read_text(encoding="utf-8").split("\n")


def _writers() -> list[tuple[Any, str, int]]:
    """Return the functions that write whole files past Python's own: module, name, and which argument is the path."""
    places = [("safetensors.torch", "serialize_file", 1), ("torch", "save", 1)]
    return [(sys.modules[module], name, place) for module, name, place in places if module in sys.modules]


def _joined(path: Any, folder: int | None) -> Any:
    """Return a path as it is from the working folder; `folder` is the descriptor that it is relative to."""
    return path if folder is None or isinstance(path, int) else str(Path(_whole(folder) or "", os.fsdecode(path)))


def _whole(path: Any) -> str | None:
    """Return the absolute path of a path or descriptor; None where it has none."""
    if isinstance(path, int):
        try:
            return str(Path(f"/proc/self/fd/{path}").readlink())
        except OSError:
            return None
    return str(Path(os.fsdecode(path)).absolute())
