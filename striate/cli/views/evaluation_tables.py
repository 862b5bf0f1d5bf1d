"""Tables of evaluations on the terminal: tasks by models, the gate, and answers that differ."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from rich.console import Group
from rich.table import Table
from rich.text import Text

from striate.artifacts import (
    Difference,
    EvalRecord,
    GateResult,
    GateRow,
    Kind,
    Prediction,
    Retention,
    SuiteRecord,
    TaskScore,
)
from striate.scores.alike import alike_share
from striate.tasks.scoring.answer_diff import change
from striate.tasks.scoring.compare import MACRO
from striate.wording import PERPLEXITY, perplexity, score_span

TASK_WIDTH, MODEL_WIDTH, CONDITION_WIDTH = 34, 24, 32
Key = tuple[str, str, str, str]


def retention_tables(records: Mapping[str, EvalRecord], retention: Retention, width: int) -> Iterator[Group]:
    """Yield tables of tasks by models: each score with its interval, and under it the retention with its own.

    Each model's retention is that of the model that it is held against. The baseline comes first; models that don't fit
    into `width` characters follow in further tables. The two averages, of visual and of textual tasks, come last.
    """
    others = [label for label in records if label != retention.baseline]
    at_once = max(1, (width - TASK_WIDTH) // MODEL_WIDTH - 1)
    rows: dict[tuple[str, ...], Difference] = {(row.label, *_key(row)): row for row in retention.held_rows()}
    averages = sorted({(row.kind, row.n) for row in retention.rows if row.pack == MACRO}, reverse=True)
    for begin in range(0, max(len(others), 1), at_once):
        labels = [retention.baseline, *others[begin : begin + at_once]]
        # A title within a narrow table is broken over lines.
        yield Group(Text(_title(retention, labels[1:]), style="italic"), _table(records, labels, rows, averages))


def _title(retention: Retention, labels: Sequence[str]) -> str:
    """Return what the cells hold: under each score what is kept of it, and of which model's."""
    against = {label: retention.reference(label) for label in labels if retention.of(label)}
    kept = next(iter(against.values()), "") if len({*against.values()}) == 1 else ""
    pairs = ", ".join(f"{label} of {reference}" for label, reference in against.items())
    told = f"; below, % kept{f' of {kept}' if kept else f': {pairs}'}" if against else ""
    return f"score and 95% interval{told}"


def gate_table(gate: GateResult) -> Table:
    """Return the gate's rows: what was asked, what was kept, whether it passed, and whether the sample can tell.

    Where it can't, `unsure_lines` and `failing_lines` say why.
    """
    table = Table(title="gate", title_justify="left", box=None, pad_edge=False)
    for name in ("condition", "model", "held against", "retention", "n", "passed", "sure"):
        right = name in ("retention", "n")
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=name != "retention")
    condition = table.columns[0]
    condition.no_wrap, condition.width = False, min(CONDITION_WIDTH, max(len(row.condition) for row in gate.rows))
    for row in gate.rows:
        retention = "-" if row.retention is None else f"{row.retention:.1f}%{_span(row.low, row.high, 1)}"
        passed, against = "yes" if row.passed else "NO", gate.reference(row)
        table.add_row(
            row.condition, row.label, against, retention, f"{row.n:,}", passed, "yes" if row.resolvable else "no"
        )
    return table


def difference_lines(
    rows: Sequence[Mapping[str, Prediction]], baseline: str, references: Mapping[str, str] = MappingProxyType({})
) -> Iterator[str]:
    """Yield, for every item that models answer otherwise, the question and each model's answer, with what changed.

    That is told of the baseline's answer, or of the one of another model that `references` names.
    """
    for row in rows:
        first = row[baseline]
        picture = f"  {first.image}" if first.image else ""
        yield f"{first.pack}/{first.task}  {first.id}{picture}"
        yield f"  asked     {' '.join(first.question.split())}"
        yield f"  expected  {' | '.join(first.expected)}"
        for label, item in row.items():
            reference = references.get(label, baseline)
            how = change(row.get(reference, first), item) if label != baseline else ""
            of = f", beside {reference}" if reference != baseline and reference in row else ""
            yield f"  {label:<9} {item.answer or '(nothing)'}{_points(item)}{f'  {how}{of}' if how else ''}"


def suite_lines(record: SuiteRecord) -> list[str]:
    """Return a line for every task: its figures with their standard errors, and how many items they are from."""
    lines = []
    for task, figures in record.figures.items():
        names = [name for name in figures if "_stderr" not in name]
        n = record.samples.get(task, 0)
        shown = ", ".join(f"{name} {figures[name]:.4g}{_error(figures, name, n)}" for name in names)
        count = f" (n = {record.samples[task]})" if task in record.samples else ""
        lines.append(f"{record.label}  {record.harness} {task}: {shown}{count}")
    return lines


def unsure_lines(gate: GateResult) -> list[str]:
    """Return a sentence for each row that passed though the sample can't tell."""
    return [
        f"can the sample tell {row.label} in {row.what}? {_telling(row)}"
        for row in gate.rows
        if row.passed and not row.resolvable
    ]


def failing_lines(gate: GateResult) -> list[str]:
    """Return a sentence for each row of the gate that did not pass."""
    return [
        f"gate: {row.label} keeps {'no measurable share' if row.retention is None else f'{row.retention:.1f}%'}"
        f" of {gate.reference(row)} in {row.what}, {row.threshold:g}% is asked; {_telling(row)}"
        for row in gate.rows
        if not row.passed
    ]


def _points(item: Prediction) -> str:
    """Return the score of an answer; the perplexity of a text is its answer already."""
    return "" if item.metric == PERPLEXITY else f"  [{item.score:g}]"


def _error(figures: dict[str, float], name: str, n: int) -> str:
    """Return a figure's standard error; of items that are all alike, which have none, how many others there may be."""
    metric, comma, kind = name.partition(",")
    error = figures.get(f"{metric}_stderr{comma}{kind}")
    if error == 0 and n:
        return f" ± ? (all {n:,} alike: 95% interval of their share {100 * alike_share(n):.1f} to 100%)"
    return f" ± {error:.2g}" if error else ""


def _telling(row: GateRow) -> str:
    if row.resolvable:
        return f"yes, n = {row.n:,}"
    if row.low is None or row.high is None:
        return f"no: {row.no_interval}"
    needed = "" if row.needed_n is None else f"; about {row.needed_n:,} items {_effect(row)}"
    return f"no: {row.threshold:g}% lies inside the 95% interval of n = {row.n:,}{needed}"


def _effect(row: GateRow) -> str:
    """Return what as many items as a row needs would tell; earlier versions took the measured retention for true."""
    if row.effect is None:
        return "would"
    return f"tell a true {row.threshold + row.effect:g}% from it, 4 times in 5"


def _table(
    records: Mapping[str, EvalRecord],
    labels: Sequence[str],
    rows: Mapping[tuple[str, ...], Difference],
    averages: Sequence[tuple[Kind, int]],
) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("task", overflow="fold")
    table.add_column("n", justify="right")
    for label in labels:
        table.add_column(label, justify="right", overflow="fold")
    for score in records[labels[0]].tasks:
        cells = [_cell(_task(records[label], score), rows.get((label, *_key(score)))) for label in labels]
        table.add_row(f"{score.pack}/{score.task} ({score.metric})", f"{score.n:,}", *cells)
    for kind, n in averages:
        cells = [_average(records[label], kind, rows) for label in labels]
        table.add_row(f"{kind}, mean of tasks", f"{n:,}", *cells, style="bold")
    return table


def _task(record: EvalRecord, like: TaskScore) -> TaskScore | None:
    return next((score for score in record.tasks if _key(score) == _key(like)), None)


def _cell(score: TaskScore | None, row: Difference | None) -> str:
    if score is None:
        return "-"
    if score.metric == PERPLEXITY:
        ends = score_span(score.low, score.high, score.metric).replace(" to ", ", ")
        return f"{perplexity(score.score)}{f' [{ends}]' if ends else ''}{_kept(row)}"
    return f"{100 * score.score:.1f}{_span(score.low, score.high, 1, 100)}{_kept(row)}"


def _average(record: EvalRecord, kind: Kind, rows: Mapping[tuple[str, ...], Difference]) -> str:
    row = next((row for row in rows.values() if (row.label, row.pack, row.task) == (record.label, MACRO, kind)), None)
    value = record.visual if kind == "visual" else record.text
    low, high = record.intervals.get(kind, (None, None))
    return "-" if value is None else f"{100 * value:.1f}{_span(low, high, 1, 100)}{_kept(row)}"


def _kept(row: Difference | None) -> str:
    if row is None:
        return ""
    return (
        "\n-" if row.retention is None else f"\n{row.retention:.1f}%{_span(row.retention_low, row.retention_high, 1)}"
    )


def _span(low: float | None, high: float | None, digits: int, scale: float = 1) -> str:
    return "" if low is None or high is None else f" [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


def missing_interval_lines(records: Mapping[str, EvalRecord], retention: Retention) -> list[str]:
    """Return why intervals are missing, a line a reason, with the tasks that lack one."""
    rows: list[TaskScore | Difference] = [score for record in records.values() for score in record.tasks]
    tasks: dict[str, dict[str, None]] = {}
    for row in [*rows, *retention.held_rows()]:
        if row.no_interval:
            name = row.kind if row.pack == MACRO else f"{row.pack}/{row.task}"
            tasks.setdefault(row.no_interval, {})[name] = None
    return [f"no 95% interval of {', '.join(names)}: {reason}" for reason, names in tasks.items()]


def _key(row: TaskScore | Difference) -> Key:
    return (row.pack, row.task, row.metric, row.kind)
