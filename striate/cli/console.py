"""Terminal output: progress bars with time left, short lines, tables, and errors."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from striate.artifacts import Difference, Region, Retention
from striate.errors import StriateError
from striate.progress import Advance

# Paths and names may hold brackets and colons: text is printed as it is.
OUT = Console(highlight=False, markup=False, emoji=False)
ERR = Console(stderr=True, highlight=False, markup=False, emoji=False)


@contextmanager
def guard(out: Path | None) -> Iterator[None]:
    """Turn errors a person can fix into a message and exit code 1, and Ctrl-C into word of how to go on."""
    try:
        yield
    except StriateError as error:
        ERR.print("error:", style="bold red", end=" ")
        ERR.print(str(error), soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        hint = f"; the same command with --out {out} goes on from here" if out else ""
        ERR.print(f"stopped{hint}", soft_wrap=True)
        raise typer.Exit(130) from None


class RichProgress:
    """A `Progress` that draws one bar at a time, with the time left."""

    @contextmanager
    def track(self, label: str, total: int) -> Iterator[Advance]:
        """Yield a function that moves the bar called `label` on."""
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=OUT) as bars:
            task = bars.add_task(label, total=total)
            yield lambda count: bars.advance(task, count)

    def say(self, text: str) -> None:
        """Print one line of what is happening."""
        OUT.print(text, style="dim", soft_wrap=True)


def quiet_libraries() -> None:
    """Keep the log of libraries to errors: striate says itself what it does."""
    for name in ("transformers", "accelerate", "peft", "torch.utils.flop_counter"):
        logging.getLogger(name).setLevel(logging.ERROR)


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
    """Return the run's result, a line a comparison: visual score, text, and the same for other models."""
    rows = [row for row in retention.rows if row.pack == "*" or row.metric == "perplexity"]
    labels = list(dict.fromkeys(row.label for row in rows))
    return [_line(row) for row in sorted(rows, key=lambda row: (labels.index(row.label), row.kind == "text"))]


def _line(row: Difference) -> str:
    if row.metric == "perplexity":
        figures = f"{row.baseline_score:.3f} -> {row.score:.3f} nats a token (lower is better)"
        change = f"{row.difference:+.3f}, 95% interval {row.low:+.3f} to {row.high:+.3f}"
    else:
        figures = f"{100 * row.baseline_score:.1f}% -> {100 * row.score:.1f}%"
        change = f"{100 * row.difference:+.1f} points, 95% interval {100 * row.low:+.1f} to {100 * row.high:+.1f}"
    what = f"{row.kind}" if row.pack == "*" else f"{row.kind} ({row.task})"
    return f"{row.label:<7} {what}: {row.baseline} {figures}; {change}, n = {row.n}"
