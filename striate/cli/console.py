"""Terminal output: progress bars with time left, short lines, and tables."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from striate.cli.views.word_wrap import between_words
from striate.printable import printable
from striate.progress import Advance
from striate.wording import MINUS, PERPLEXITY, points, score, span

if TYPE_CHECKING:
    from striate.artifacts import Difference, PruneRecord, Region, Retention


class SafeConsole(Console):
    """A console that shows all text as it is, and every character that a terminal would obey as an escape."""

    def __init__(self, *, stderr: bool = False) -> None:
        # Paths and names may hold brackets and colons.
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        """Print; what is softly wrapped is broken between words on a terminal, and stays one line in a pipe or a file.

        With `no_wrap` it stays one line there too, as a command that is copied should.
        """
        if soft_wrap and self.is_terminal and not options.get("no_wrap"):
            objects = tuple(
                between_words(each, self.width) if isinstance(each, str | Text) else each for each in objects
            )
        super().print(*objects, soft_wrap=soft_wrap, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of anything that is printed, each with printable text."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


OUT = SafeConsole()
ERR = SafeConsole(stderr=True)

QUIET: ContextVar[bool] = ContextVar("quiet", default=False)
"""Whether bars and lines of progress are left out: `striate --quiet VERB`. Results, warnings and errors stay."""


VERBOSE: ContextVar[bool] = ContextVar("verbose", default=False)
"""Whether tables that take more than a screen are printed whole: `striate --verbose VERB`."""

SECONDS_OF_SPEED = 1800.0
SECONDS_BETWEEN_LINES = 60.0
"""How often a pipe or a file, where no bar moves, has a line of progress."""


class _Left(TimeRemainingColumn):
    """The time left, of work that is not done."""

    def render(self, task: Task) -> Text:
        """Return it with its word, or nothing."""
        return Text("") if task.finished else Text.assemble("left ", super().render(task))


class RichProgress:
    """A `Progress` that draws one bar at a time, with the time left and what it is told to note."""

    def __init__(self, console: Console = OUT) -> None:
        self._console = console
        self._note: Callable[[str], None] = lambda text: None

    def track(self, label: str, total: int) -> AbstractContextManager[Advance]:
        """Return a context of a function that moves the bar called `label` on."""
        return self._bar(label, total, MofNCompleteColumn())

    def track_bytes(self, label: str, total: int) -> AbstractContextManager[Advance]:
        """Return the same for bytes, which are shown in kB, MB or GB."""
        return self._bar(label, total, DownloadColumn())

    @contextmanager
    def _bar(self, label: str, total: int, amount: ProgressColumn) -> Iterator[Advance]:
        if QUIET.get():
            yield lambda count: None
            return
        columns = (
            TextColumn("{task.fields[name]}", markup=False),
            BarColumn(bar_width=32),
            amount,
            TimeElapsedColumn(),
            _Left(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        # A step may take minutes: the time left follows from the last ones, however slow.
        with Progress(*columns, console=self._console, speed_estimate_period=SECONDS_OF_SPEED) as bars:
            task = bars.add_task(label, total=total, name=f"{label:<28}", note="")
            # Beside a note the label takes no more room than it needs.
            self._note = lambda text: bars.update(task, name=label, note=text)
            tell = _by_the_minute(bars.tasks[0], label, self._console)

            def advance(count: int) -> None:
                bars.advance(task, count)
                tell()

            yield advance

    def note(self, text: str) -> None:
        """Show `text` beside the bar."""
        self._note(text)

    def say(self, text: str) -> None:
        """Print one line of what is happening."""
        if not QUIET.get():
            self._console.print(text, style="dim", soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print one line that stays also where all else is quiet."""
        self._console.print(text, style="dim", soft_wrap=True)


def _by_the_minute(task: Task, label: str, console: Console) -> Callable[[], None]:
    """Return what prints once a minute how far `task` is, where no bar moves: in a pipe or a file."""
    told = time.monotonic()
    begun: list[tuple[float, float]] = []

    def tell() -> None:
        nonlocal told
        passed, done, total = task.elapsed or 0.0, task.completed, task.total or 0.0
        # A training that goes on has the steps of earlier at once, which say nothing of how long a step takes.
        since, before = begun[0] if begun else (0.0, 0.0)
        begun.append((passed, done))
        del begun[1:]
        if console.is_terminal or time.monotonic() < told + SECONDS_BETWEEN_LINES:
            return
        told = time.monotonic()
        left = (passed - since) * (total - done) / max(done - before, 1)
        times = [str(timedelta(seconds=round(seconds))) for seconds in (passed, left)]
        note = f", {task.fields['note']}" if task.fields["note"] else ""
        console.print(f"{label} {done:g}/{total:g}, {times[0]}, {times[1]} left{note}", soft_wrap=True)

    return tell


def print_json(text: str) -> None:
    """Print JSON as it is, in one piece: neither wrapped nor coloured."""
    print(text, flush=True)


def quiet_libraries() -> None:
    """Keep the log of libraries to errors: striate says itself what it does."""
    for name in ("transformers", "accelerate", "peft", "torchao", "torch.utils.flop_counter"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # What is imported later sets its level anew, from this.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for bars in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(bars, "1")


def from_here(path: Path) -> Path:
    """Return `path` as seen from the current folder where it lies below it; else from the root of the disk."""
    whole, here = path.resolve(), Path.cwd().resolve()
    return whole.relative_to(here) if whole.is_relative_to(here) else whole


def show_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a table; columns after the first two are right-aligned when they hold numbers."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(header):
        numeric = bool(rows) and all(row[index].replace(",", "").rstrip("%").replace(".", "").isdigit() for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    OUT.print(table)


def draw_stack(region: Region, removed: tuple[int, ...] = ()) -> str:
    """Return the stack of layers on one line, input first: region layers full, others light, removed ones crossed."""
    return "".join("×" if i in removed else "█" if i in region else "░" for i in range(region.num_layers))


def result_lines(retention: Retention) -> list[str]:
    """Return the run's result, a line a comparison: each model's visual score and text, with what it is held against.

    Changes are in points, of perplexity in percent, with 95% intervals, as the first line says. A model whose
    comparison is not there has a line that says so.
    """
    rows = [row for row in retention.held_rows() if row.pack == "*" or row.metric == "perplexity"]
    labels = list(dict.fromkeys(row.label for row in rows))
    less = "; less perplexity is better" if any(row.metric == PERPLEXITY for row in rows) else ""
    head = [f"each change with its 95% interval{less}"] if rows else []
    lines = [_line(row) for row in sorted(rows, key=lambda row: (labels.index(row.label), row.kind == "text"))]
    return [*head, *lines, *_floor_lines(retention)] + [
        f"{label:<7} not compared with {reference}, which was not evaluated: add {reference} to evaluate.models"
        for label, reference in retention.not_held().items()
    ]


def _floor_lines(retention: Retention) -> list[str]:
    """Return what each model keeps above the floor of what it is held against, over all tasks with a picture."""
    rows = [row for row in retention.held_rows() if row.pack == "*" and row.floor is not None]
    return [f"{row.label:<7} {row.kind} above the floor: {_above_floor(row)}" for row in rows]


def _above_floor(row: Difference) -> str:
    floor = f"{row.baseline} without pictures {100 * (row.floor or 0):.1f}%"
    if row.above_floor is None:
        return f"can't be told: {row.no_above_floor} ({floor})"
    ends = f"[{row.above_floor_low:.1f}, {row.above_floor_high:.1f}]"
    return f"{row.above_floor:.1f}% of {row.baseline} kept {ends}; {floor}, n = {row.n:,}"


def saved_line(prune: PruneRecord) -> str:
    """Return what pruning saved: parameters, and bytes where they are recorded."""
    before, after = prune.parameters_before, prune.parameters_after
    share = 100 * (before - after) / (before or 1)
    told = f"saved   {before - after:,} of {before:,} parameters ({share:.1f}%)"
    if not prune.bytes_before:
        return told
    return f"{told}, {(prune.bytes_before - prune.bytes_after) / 1e6:,.1f} of {prune.bytes_before / 1e6:,.1f} MB"


def _line(row: Difference) -> str:
    before, after = (score(value, row.metric) for value in (row.baseline_score, row.score))
    change = f"{_plain(points(row.difference, row.metric))} {_interval(row)}, n = {row.n:,}"
    if row.metric == PERPLEXITY:
        return f"{row.label:<7} {row.task}: perplexity of {row.baseline} {before} -> {after}; {change}"
    return f"{row.label:<7} {row.kind}: {row.baseline} {before} -> {after}; {change}"


def _interval(row: Difference) -> str:
    if row.low is None or row.high is None:
        return f"(no 95% interval: {row.no_interval})"
    ends = _plain(span(row.low, row.high, row.metric))
    return f"[{ends.replace('%', '').replace(' to ', ', ')}]"


def _plain(text: str) -> str:
    """Return a signed number with the minus sign of a keyboard, by which it is found."""
    return text.replace(MINUS, "-")
