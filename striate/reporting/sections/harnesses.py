"""Table of what evaluation harnesses measured, in their own metrics."""

from collections.abc import Sequence

from striate.artifacts import SuiteRecord
from striate.reporting.html.markup import Html
from striate.reporting.html.model_names import model_name, place_of
from striate.reporting.html.tables import Cell, figures, table
from striate.scores.alike import alike_share
from striate.wording import count, plain_number

ERROR = "_stderr"
HEADS = ["task", "model", "harness", "metric", "n", "value", "standard error"]


def draw_harnesses(records: Sequence[SuiteRecord]) -> Html | None:
    """Return a row a task, metric and model, or None where no harness ran."""
    ordered = sorted(records, key=lambda record: (record.harness, place_of(record.label)))
    rows = [row for record in ordered for row in _rows(record)]
    return table(HEADS, sorted(rows, key=lambda row: str(row[0].content))) if rows else None


def _rows(record: SuiteRecord) -> list[list[Cell]]:
    return [
        _cells(record, task, metric, value, figures.get(_error_of(metric)))
        for task, figures in record.figures.items()
        for metric, value in figures.items()
        if ERROR not in metric
    ]


def _error_of(metric: str) -> str:
    """Return the name of a metric's standard error: `acc,filter` has `acc_stderr,filter`."""
    name, comma, way = metric.partition(",")
    return f"{name}{ERROR}{comma}{way}"


def _told(error: float | None, n: int) -> str:
    """Return a standard error; of items that are all alike, which have none, how many others there may be."""
    if error is None or (not error and not n):
        return "–"
    if error:
        return plain_number(error)
    return f"none: all {count(n)} alike, 95% interval of their share {100 * alike_share(n):.1f} to 100%"


def _cells(record: SuiteRecord, task: str, metric: str, value: float, error: float | None) -> list[Cell]:
    return [
        Cell(task, head=True),
        Cell(model_name(record.label)),
        Cell(f"{record.harness} {record.harness_version}"),
        Cell(metric),
        *figures(count(record.samples[task]) if task in record.samples else "–", plain_number(value)),
        *figures(_told(error, record.samples.get(task, 0))),
    ]
