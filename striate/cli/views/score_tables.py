"""Layer scores on the terminal: the stack with bars, agreement between scorers, stability, and two runs compared."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from striate.artifacts import LayerScores, Region, Scores
from striate.scores.comparison import ScorerComparison
from striate.scores.ranking import Agreement, agreement
from striate.scores.student_t import FEWEST

BAR_CELLS = 8
HIGHEST = 4
_HEIGHTS = "▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class TableColumn:
    """One list of scores in the stack, with what stands over it; intervals are shown where there are some."""

    title: str
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def stack_tables(scores: Scores, region: Region | None, width: int) -> Iterator[Group]:
    """Yield the stack of layers, a row a layer, with every scorer's bars; as many tables as `width` asks for.

    Every scorer that has parts, or scores by task, follows with a column for each, without intervals. `region` marks
    its layers.
    """
    columns = [
        TableColumn(entry.scorer, entry.values, *((entry.low, entry.high) if entry.samples else ()))
        for entry in scores.scorers
    ]
    title = f"{scores.samples} samples: score and 95% interval"
    if any(entry.samples and not entry.low for entry in scores.scorers):
        title += f" (of fewer than {FEWEST} none holds)"
    yield from _tables(title, columns, region, width)
    for entry in scores.scorers:
        parts = [TableColumn(part, values) for part, values in entry.parts.items()]
        tasks = [
            TableColumn(task, row.values)
            for task, entries in scores.tasks.items()
            for row in entries
            if row.scorer == entry.scorer
        ]
        yield from _tables(f"{entry.scorer} by part", parts, region, width)
        yield from _tables(f"{entry.scorer} by task", tasks, region, width)


def score_lines(scores: Scores, region: Region | None) -> Iterator[str]:
    """Yield on one screen what the scorers say: a strip of layers each, its highest ones, and whether halves agree."""
    yield f"{scores.samples} samples; a strip has layer 0 first, and --verbose shows every score with its interval"
    if region:
        yield f"region {region.spec}: {len(region)} of {region.num_layers} layers"
        yield f"  {''.join('█' if layer in region else '░' for layer in range(region.num_layers))}"
    for entry in scores.scorers:
        order = sorted(range(len(entry.values)), key=entry.values.__getitem__, reverse=True)[:HIGHEST]
        agree = f"; halves of the samples agree {_split_half(entry)[0]}" if entry.split_half else ""
        yield f"{entry.scorer}: highest in layers {', '.join(map(str, order))}{agree}"
        yield f"  {strip(entry.values)}"


def strip(values: Sequence[float]) -> str:
    """Return a character a value, the higher the more of its cell is full: from the least of all to the most."""
    least, most = min(values), max(values)
    steps = [round(7 * (value - least) / (most - least)) if most > least else 0 for value in values]
    return "".join(_HEIGHTS[step] for step in steps)


def agreement_table(scores: Scores) -> Group | None:
    """Return the rank correlations between the scorers as a table, or None for a single scorer."""
    correlations: Agreement = agreement(scores)
    if len(correlations.scorers) < 2:
        return None
    table = _table()
    table.add_column("")
    for number in range(1, len(correlations.scorers) + 1):
        table.add_column(str(number), justify="right")
    for number, (scorer, row) in enumerate(zip(correlations.scorers, correlations.matrix, strict=True), 1):
        table.add_row(f"{number} {scorer}", *map(_correlation, row))
    return _titled("agreement between scorers: Spearman's rank correlation over layers", table)


def stability_table(scores: Scores) -> Group | None:
    """Return how sure each ranking is, as a table: its top layer, split halves, samples; None without samples."""
    rows = [("all", entry) for entry in scores.scorers if entry.samples]
    rows += [(task, entry) for task, entries in scores.tasks.items() for entry in entries if entry.samples]
    if not rows:
        return None
    table = _table()
    for name in ("scorer", "task"):
        table.add_column(name)
    for name in ("highest", "samples", "split-half", "for 0.9"):
        table.add_column(name, justify="right")
    for task, entry in sorted(rows, key=lambda row: [other.scorer for other in scores.scorers].index(row[1].scorer)):
        table.add_row(entry.scorer, task, _highest(entry), str(entry.samples), *_split_half(entry))
    return _titled("how sure: the highest layer, and the rank correlation between random halves of the samples", table)


def comparison_tables(comparisons: Sequence[ScorerComparison], shown: int = 8) -> Iterator[Group]:
    """Yield the rank correlation of two runs by scorer, then for each scorer the layers whose rank moved most."""
    table = _table()
    table.add_column("scorer")
    table.add_column("correlation", justify="right")
    for comparison in comparisons:
        table.add_row(comparison.scorer, _correlation(comparison.rank_correlation))
    yield _titled("two runs: Spearman's rank correlation over layers", table)
    for comparison in comparisons:
        moved = [move for move in comparison.moves if move.distance][:shown]
        if not moved:
            continue
        table = _table()
        for name in ("layer", "first", "second", "change"):
            table.add_column(name, justify="right")
        for move in moved:
            table.add_row(str(move.layer), f"{move.first:g}", f"{move.second:g}", f"{move.second - move.first:+g}")
        yield _titled(f"{comparison.scorer}: layers that moved most (rank 1 is the most important)", table)


def bar(value: float, least: float, most: float) -> str:
    """Return `value` as a bar of eight cells in eighths: empty at `least`, full at `most`."""
    share = (value - least) / (most - least) if most > least else 0.0
    eighths = round(8 * BAR_CELLS * min(1.0, max(0.0, share)))
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(BAR_CELLS)


def _tables(title: str, columns: Sequence[TableColumn], region: Region | None, width: int) -> Iterator[Group]:
    """Yield the stack with `columns`, in as many tables as fit `width`; none without columns."""
    frame = [str(layer) for layer in range(len(columns[0].values))] if columns else []
    marks = ["█" if layer in region else "░" for layer in range(len(frame))] if region else []
    left = [["layer", *frame], *([["", *marks]] if marks else [])]
    used = 0
    shown: list[list[str]] = []
    for cells in map(_cells, columns):
        if shown and used + len(cells[1]) > width:
            yield _stack(title, [*left, *shown])
            title, shown = f"{title.removesuffix(', continued')}, continued", []
        used = (used if shown else 7 + 3 * bool(marks)) + len(cells[1]) + 2
        shown.append(cells)
    if shown:
        yield _stack(title, [*left, *shown])


def _stack(title: str, columns: Sequence[Sequence[str]]) -> Group:
    """Return a table of columns that each begin with their header; layers are numbers, the rest is text."""
    table = _table()
    for number, column in enumerate(columns):
        table.add_column(Text(column[0]), justify="left" if number else "right", overflow="fold")
    for row in zip(*(column[1:] for column in columns), strict=True):
        table.add_row(*map(Text, row))
    return _titled(title, table)


def _cells(column: TableColumn) -> list[str]:
    """Return the title, then each layer's bar, value and interval; bars begin at 0, or at the lowest score below it."""
    least, most = min(0.0, *column.values), max(column.values)
    show = _number_format([*column.values, *column.low, *column.high])
    values, low, high = (_aligned(numbers, show) for numbers in (column.values, column.low, column.high))
    bars = [bar(value, least, most) for value in column.values]
    bands = [f"  {start} to {end}" for start, end in zip(low, high, strict=True)] or [""] * len(bars)
    return [column.title, *(f"{drawn} {value}{band}" for drawn, value, band in zip(bars, values, bands, strict=True))]


def _aligned(numbers: Sequence[float], show: Callable[[float], str]) -> list[str]:
    texts = list(map(show, numbers))
    return [text.rjust(max(map(len, texts))) for text in texts]


def _number_format(values: Sequence[float]) -> Callable[[float], str]:
    """Return how to write numbers of the size of `values` with three to four digits that differ."""
    largest = max((abs(value) for value in values), default=0.0)
    if largest and not 0.01 <= largest < 1000:
        return lambda value: f"{value:.2e}"
    decimals = 4 if largest < 1 else 3 - math.floor(math.log10(largest))
    return lambda value: f"{value:.{max(1, decimals)}f}"


def _highest(entry: LayerScores) -> str:
    if entry.peak is None:
        return str(max(range(len(entry.values)), key=entry.values.__getitem__))
    place = str(entry.peak.layer)
    return place if entry.peak.low == entry.peak.high else f"{place} ({entry.peak.low} to {entry.peak.high})"


def _split_half(entry: LayerScores) -> tuple[str, str]:
    half = entry.split_half
    if half is None:
        return "-", "-"
    band = f"{half.rank_correlation:.2f} ({half.low:.2f} to {half.high:.2f})"
    return band, "-" if half.samples_needed is None else f"{half.samples_needed:,}"


def _correlation(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _table() -> Table:
    return Table(box=None, pad_edge=False, header_style="bold")


def _titled(title: str, table: Table) -> Group:
    return Group(Text(title, style="italic"), table)
