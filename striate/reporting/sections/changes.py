"""Tables of answers that changed against another model, with McNemar's test, and of further figures."""

from collections.abc import Sequence

from striate.artifacts import Difference, TaskScore
from striate.reporting.charts.bars import task_name
from striate.reporting.data.run_artifacts import RunArtifacts
from striate.reporting.html.markup import Html, tag
from striate.reporting.html.model_names import model_name
from striate.reporting.html.tables import Cell, figures, table
from striate.wording import count, plain_number, points, words

SMALLEST_P = 1e-4


def draw_changes(rows: Sequence[Difference]) -> Html | None:
    """Return counts of answers that changed and McNemar's p, or None where no comparison has them."""
    counted = [row for row in rows if row.right_to_wrong is not None or row.mcnemar_p is not None]
    if not counted:
        return None
    counts = ["n", "wrong to right", "right to wrong"]
    heads = ["task", "model", "against", *counts, "McNemar's p", "difference", "could tell from"]
    return table(heads, [_cells(row) for row in counted])


def p_value(value: float | None) -> str:
    """Return a p value in words, never as zero."""
    if value is None:
        return "–"
    return f"< {SMALLEST_P:.4f}" if value < SMALLEST_P else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def _cells(row: Difference) -> list[Cell]:
    name = f"all {row.kind} tasks" if row.pack == "*" else task_name(row.pack, row.task)
    resolvable = points(row.resolvable, row.metric).lstrip("+") if row.resolvable is not None else "–"
    return [
        Cell(name, head=True),
        Cell(model_name(row.label)),
        Cell(model_name(row.baseline)),
        *figures(count(row.n), _counted(row.wrong_to_right), _counted(row.right_to_wrong)),
        *figures(p_value(row.mcnemar_p), points(row.difference, row.metric), resolvable),
    ]


def _counted(value: int | None) -> str:
    return "–" if value is None else count(value)


def draw_details(artifacts: RunArtifacts) -> Html | None:
    """Return further figures of the metrics and unreadable answers, folded, or None where there are none."""
    rows = [
        _detail(label, task)
        for label in artifacts.labels
        for task in artifacts.evals[label].tasks
        if task.details or task.unparsed
    ]
    if not rows:
        return None
    heads = ["task", "model", "metric", "not readable", "further figures"]
    return tag("details", tag("summary", "Further figures and unreadable answers"), table(heads, rows))


def _detail(label: str, task: TaskScore) -> list[Cell]:
    details = ", ".join(f"{words(name)} {plain_number(value)}" for name, value in task.details.items())
    return [
        Cell(task_name(task.pack, task.task), head=True),
        Cell(model_name(label)),
        Cell(words(task.metric)),
        Cell(f"{count(task.unparsed)} of {count(task.n)}", right=True),
        Cell(details or "–", long=True),
    ]
