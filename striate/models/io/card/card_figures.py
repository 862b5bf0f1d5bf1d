"""The table of scores in a model card."""

from __future__ import annotations

from collections.abc import Sequence

from striate.artifacts import Difference, TaskScore
from striate.models.io.card.card_facts import CardFacts
from striate.models.io.card.card_markdown import plain
from striate.wording import PERPLEXITY, perplexity, score_span

MEASURED_BEFORE = " They were measured before the weights were {}."
LESS_PERPLEXITY = (
    " (perplexity as such, lower is better; its retention is that of the model that is held against over its own)"
)
# What a table with floors tells more: of itself, in its head, and in the line below.
ABOVE_FLOOR = (
    " Its floor is its score with grey pictures in place of the right ones; above it is kept (score - floor) /"
    " (its score - floor).",
    " its floor | above the floor | 95% interval |",
    "---|---|---|",
)


def figures(facts: CardFacts, stored: str) -> str:
    """Return the section of scores, empty without any; `stored` says how the weights were quantised since."""
    if facts.evaluation is None:
        return ""
    changed = "quantised" if stored else "merged and rounded" if facts.merged else ""
    rows = {(row.pack, row.task, row.metric): row for row in facts.differences}
    floors = any(row.floor is not None for row in facts.differences)
    about, heads, rule = ABOVE_FLOOR if floors else ("", "", "")
    read = any(task.metric == PERPLEXITY for task in facts.evaluation.tasks)
    less = LESS_PERPLEXITY if read else ""
    lines = [
        "## Evaluation",
        "",
        f"Scores in % with 95% intervals{less}; retention against "
        f"{_reference(facts)} on the same items.{about}{MEASURED_BEFORE.format(changed) if changed else ''}",
        "",
        f"| task | metric | n | score | 95% interval | retention | 95% interval |{heads}",
        f"|---|---|---|---|---|---|---|{rule}",
        *(_whole_row(row) + _above_floor(row, floors) for row in facts.differences if row.pack == "*"),
        *(
            _row(task, row) + _above_floor(row, floors)
            for task in facts.evaluation.tasks
            for row in [rows.get((task.pack, task.task, task.metric))]
        ),
    ]
    return "\n".join(lines)


def _reference(facts: CardFacts) -> str:
    """Return what the model is held against, by its name in the run."""
    names = {"start": "the model before tuning (start)", "tuned": "the tuned model before layers were removed (tuned)"}
    if not facts.differences:
        return "no other model" if facts.prune is None else "no other model: the tuned one was not evaluated"
    return names.get(facts.differences[0].baseline, plain(facts.differences[0].baseline))


def _row(task: TaskScore, row: Difference | None) -> str:
    score = perplexity(task.score) if task.metric == PERPLEXITY else f"{100 * task.score:.1f}"
    told = score_span(task.low, task.high, task.metric) or f"none: {task.no_interval}"
    cells = [f"{task.pack}: {task.task}", task.metric, str(task.n), score, told, *_retention(row)]
    return f"| {' | '.join(map(plain, cells))} |"


def _whole_row(row: Difference) -> str:
    cells = [f"all {row.kind} tasks", "mean", str(row.n), f"{100 * row.score:.1f}", "", *_retention(row)]
    return f"| {' | '.join(cells)} |"


def _above_floor(row: Difference | None, shown: bool) -> str:
    """Return the cells of the floor, which stand in the table where any row has one."""
    if not shown:
        return ""
    if row is None or row.floor is None:
        return "  |  |  |"
    kept = _retention(row.kept_above_floor) if row.above_floor is not None else (f"none: {row.no_above_floor}", "")
    return f" {100 * row.floor:.1f} | {kept[0]} | {kept[1]} |"


def _retention(row: Difference | None) -> Sequence[str]:
    if row is None or row.retention is None:
        return "", ""
    if row.retention_low is None or row.retention_high is None:
        return f"{row.retention:.1f}%", f"none: {row.no_interval}"
    return f"{row.retention:.1f}%", f"{row.retention_low:.1f} to {row.retention_high:.1f}"
