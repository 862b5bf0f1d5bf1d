"""Runs attack cases, each in a forked process with limits, and says how each came out."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

CPU_SECONDS, WALL_SECONDS, IDLE_SECONDS, MEMORY_BYTES = 25, 240, 12, 8 * 2**30
TRACEBACK = "Traceback (most recent call last)"
# Escape, 8-bit control characters and all of C0 but tab and line ends; a progress bar may return the carriage.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
LONGEST = 4000
CLEAN, WEAK, FAILED = "clean", "weak", "failed"


@dataclass(frozen=True)
class Verdict:
    """How a case came out: clean, weak or failed, and why where it is not clean."""

    state: str
    why: str = ""


@dataclass(frozen=True)
class Shown:
    """What one call of the command line left: its exit code and all that it printed."""

    code: int
    text: str
    words: tuple[str, ...] = ()


@dataclass
class Place:
    """A case's own folder: copies of the model, pack and runs that it asked for, and the run config."""

    root: Path
    pristine: Path
    shown: list[Shown] = field(default_factory=list)

    @property
    def model(self) -> Path:
        """The tiny LLaVA."""
        return self.root / "model"

    @property
    def pack(self) -> Path:
        """The data pack."""
        return self.root / "pack"

    @property
    def config(self) -> Path:
        """RUN.yaml, which names both."""
        return self.root / "run.yaml"

    @property
    def out(self) -> Path:
        """A run folder that is not there yet."""
        return self.root / "out"

    def striate(self, *words: object, stdin: str = "") -> Shown:
        """Run the command line in this process; return its exit code and what it printed."""
        from striate.cli import main

        told = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        before = sys.argv, sys.stdout, sys.stderr, sys.stdin
        sys.argv = ["striate", *map(str, words)]
        sys.stdout = sys.stderr = told
        sys.stdin = io.TextIOWrapper(io.BytesIO(stdin.encode()))
        try:
            main()
            code: Any = 0
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc(file=told)
            code = 1
        finally:
            sys.argv, sys.stdout, sys.stderr, sys.stdin = before
        text = told.buffer.getvalue().decode("utf-8", "replace")  # type: ignore[attr-defined]
        self.shown.append(Shown(code if isinstance(code, int) else int(code is not None), text, tuple(map(str, words))))
        return self.shown[-1]


Play = Callable[[Place], Verdict]


@dataclass(frozen=True)
class Case:
    """One attack: its kind, a name, what of the ground it needs, and what is done and looked at.

    Attributes:
        slow: takes seconds rather than a tenth of one.
    """

    kind: str
    name: str
    play: Play
    needs: tuple[str, ...] = ("model", "pack")
    slow: bool = False


@dataclass(frozen=True)
class Result:
    """How one case came out."""

    kind: str
    name: str
    state: str
    why: str
    seconds: float


def judge(
    shown: Shown, right: Callable[[], str] | None = None, *, names: Sequence[str] = (), refused: bool = False
) -> Verdict:
    """Return how one call of the command line came out.

    Args:
        shown: the call.
        right: says what is wrong with what an accepted call did, or an empty string.
        names: what an error must name.
        refused: the call must not be accepted.
    """
    said = f"`striate {' '.join(shown.words)[:90]}`: {tail(shown.text)}"
    if TRACEBACK in shown.text or shown.code not in (0, 1, 2):
        return Verdict(FAILED, f"exit code {shown.code}, {said}{_report(shown.text)}")
    loose = CONTROL.search(shown.text)
    if loose:
        return Verdict(FAILED, f"{loose[0]!r} reaches the terminal, {said}")
    if shown.code == 0:
        wrong = "accepted without a word" if refused else right() if right else ""
        return Verdict(FAILED, f"{wrong}, {said}") if wrong else Verdict(CLEAN)
    if shown.code == 2 and "Usage:" in shown.text:
        return Verdict(CLEAN)
    return _judge_error(shown, names, said)


def _report(text: str) -> str:
    """Return the end of the report that a bug left."""
    named = re.search(r"a report is in (\S+);", text)
    return f" {tail(Path(named[1]).read_text('utf-8', 'replace'), 700)}" if named and Path(named[1]).is_file() else ""


def _judge_error(shown: Shown, names: Sequence[str], said: str) -> Verdict:
    begin = shown.text.rfind("error: ")
    error = shown.text[begin:] if begin >= 0 else ""
    if not error:
        return Verdict(FAILED, f"no error is named, {said}")
    for part in ("\n  allowed: ", "\n  next:    "):
        if part not in error:
            return Verdict(WEAK, f"no {part.strip()!r} in {said}")
    missing = [name for name in names if name not in error]
    if missing:
        return Verdict(WEAK, f"does not name {missing[0]!r}: {said}")
    if len(error) > LONGEST:
        return Verdict(WEAK, f"{len(error)} characters, {said}")
    return Verdict(CLEAN)


def tail(text: str, length: int = 420) -> str:
    """Return the end of a text on one line."""
    return repr(text.strip()[-length:])


def worst(*verdicts: Verdict) -> Verdict:
    """Return the worst of several verdicts."""
    order = (FAILED, WEAK, CLEAN)
    return min(verdicts, key=lambda verdict: order.index(verdict.state))


def run_cases(
    cases: Sequence[Case],
    build: Callable[[Path], None],
    *,
    workers: int = 2,
    tell: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Return how the cases came out, after `workers` processes played them on grounds that `build` makes."""
    context = get_context("fork")
    root = Path(tempfile.mkdtemp(prefix="striate-attack-"))
    counter, queue = context.Value("i", 0), context.SimpleQueue()
    arguments = (cases, build, counter, queue)
    started = [context.Process(target=_work, args=(root / f"place-{slot}", *arguments)) for slot in range(workers)]
    for process in started:
        process.start()
    results = []
    try:
        while len(results) < len(cases):
            result = queue.get()
            if isinstance(result, str):
                raise RuntimeError(result)
            results.append(result)
            if tell:
                tell(result)
    finally:
        for process in started:
            process.terminate()
            process.join()
        shutil.rmtree(root, ignore_errors=True)
    order = {(case.kind, case.name): place for place, case in enumerate(cases)}
    return sorted(results, key=lambda result: order[result.kind, result.name])


def _work(folder: Path, cases: Sequence[Case], build: Callable[[Path], None], counter: Any, queue: Any) -> None:
    """Play cases until none is left, in one folder that is set up anew for each."""
    try:
        pristine, root = folder / "pristine", folder / "play"
        root.mkdir(parents=True)
        # Runs keep where their model lies: they are made where they are played with, and held by who made them.
        builder = os.fork()
        if not builder:
            _build(build, root, folder / "log")
        if os.waitpid(builder, 0)[1]:
            raise RuntimeError((folder / "log").read_text(encoding="utf-8"))
        root.rename(pristine)
    except BaseException:
        queue.put(traceback.format_exc())
        return
    while True:
        with counter.get_lock():
            index, counter.value = counter.value, counter.value + 1
        if index >= len(cases):
            return
        queue.put(_play(cases[index], Place(root, pristine), folder))


def _build(build: Callable[[Path], None], root: Path, log: Path) -> None:
    code = 0
    try:
        build(root)
    except BaseException:
        log.write_text(traceback.format_exc(), encoding="utf-8")
        code = 1
    os._exit(code)


def _play(case: Case, place: Place, folder: Path) -> Result:
    """Return how one case came out, played in a process of its own."""
    begin = time.perf_counter()
    _clean(place.root)
    place.root.mkdir()
    for name in ("run.yaml", *case.needs):
        source = place.pristine / name
        if source.is_dir():
            shutil.copytree(source, place.root / name, symlinks=True)
        else:
            shutil.copy2(source, place.root / name)
    log, answer = folder / "log", folder / "answer"
    answer.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        _child(case, place, log, answer)
    verdict = _wait(child, answer, log)
    return Result(case.kind, case.name, verdict.state, verdict.why, round(time.perf_counter() - begin, 2))


def _clean(root: Path) -> None:
    for path in root.rglob("*") if root.exists() else ():
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(root, ignore_errors=True)


def _child(case: Case, place: Place, log: Path, answer: Path) -> None:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 2))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    opened = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(opened, 1)
    os.dup2(opened, 2)
    os.chdir(place.root)
    # Reports of bugs and what is built lie with the case.
    os.environ["STRIATE_CACHE"] = str(place.root / "cache")
    os.environ["XDG_STATE_HOME"] = str(place.root / "state")
    try:
        verdict = case.play(place)
    except BaseException:
        verdict = Verdict(FAILED, f"the case itself: {traceback.format_exc()[-800:]}")
    answer.write_text(json.dumps([verdict.state, verdict.why]), encoding="utf-8", errors="replace")
    os._exit(0)


def _wait(child: int, answer: Path, log: Path) -> Verdict:
    begin = moved = time.perf_counter()
    used = 0
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        now = time.perf_counter()
        if now - moved > IDLE_SECONDS and _used(child) != used:
            moved, used = now, _used(child)
        if now - begin > WALL_SECONDS or now - moved > IDLE_SECONDS:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Verdict(FAILED, f"hangs: no end after {now - begin:.0f} s")
        time.sleep(0.003)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if answer.exists():
        return Verdict(*json.loads(answer.read_text(encoding="utf-8")))
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return Verdict(FAILED, f"hangs: {CPU_SECONDS} s of CPU were not enough")
    return Verdict(FAILED, f"died without a word, status {status}: {tail(log.read_text('utf-8', 'replace'))}")


def _used(session: int) -> int:
    """Return the CPU ticks that the processes of a session, and those that they waited for, have used."""
    used = 0
    for place in Path("/proc").glob("[0-9]*/stat"):
        # A process may have ended since it was listed.
        with suppress(OSError, IndexError):
            figures = place.read_text().rpartition(")")[2].split()
            if int(figures[3]) == session:
                used += sum(map(int, figures[11:15]))
    return used


def table(results: Iterable[Result]) -> dict[str, dict[str, int]]:
    """Return, for each kind, how many cases were tried and how many came out clean, weak and failed."""
    counts: dict[str, dict[str, int]] = {}
    for result in results:
        row = counts.setdefault(result.kind, {"tried": 0, CLEAN: 0, WEAK: 0, FAILED: 0})
        row["tried"] += 1
        row[result.state] += 1
    return counts
