"""Verbs about results: evaluate, with its gate and the answers that differ, and report."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from striate.cli.boundary import guard
from striate.cli.console import ERR, OUT, VERBOSE, print_json, result_lines
from striate.cli.options import Config, Json, Out, Replace, RunFolder, Settings, run_stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from striate.artifacts import Prediction, Retention, SuiteRecord
    from striate.pipeline import Flow

ONE_SCREEN = 8
"""The most tasks whose table, of two lines each, is printed without being asked for."""

Gate = Annotated[
    str | None,
    typer.Option("--gate", metavar="CONDITIONS", help="Exit 1 unless kept, e.g. 'visual>=99,text>=99.5'."),
]
Baseline = Annotated[
    str | None,
    typer.Option("--baseline", metavar="MODEL", help="What models are held against; pruned: the tuned one."),
]
Suites = Annotated[
    list[str] | None,
    typer.Option("--suite", metavar="HARNESS:TASKS", help="lm-eval:TASKS or lmms-eval:TASKS; may be given again."),
]
Differences = Annotated[
    bool, typer.Option("--differences", help="Print every item that two models answer otherwise, side by side.")
]
Export = Annotated[
    Path | None, typer.Option("--export", metavar="FILE", help="Write these items to a .csv or .jsonl file instead.")
]


def register(app: typer.Typer) -> None:
    """Add this module's verbs to the command line."""
    app.command("evaluate")(evaluate)
    app.command("report")(report)


def evaluate(
    config: Config = None,
    out: Out = Path("run"),
    *,
    gate: Gate = None,
    baseline: Baseline = None,
    suite: Suites = None,
    differences: Differences = False,
    export: Export = None,
    settings: Settings = None,
    overwrite: Replace = False,
    json: Json = False,
) -> None:
    """Ask every model the test packs: eval/."""

    def stage(flow: Flow) -> None:
        from striate.cli.views.evaluation_tables import suite_lines

        # Before hours of questions, not after them.
        flow.check_suites()
        asked = bool(flow.config.evaluate.packs) or not flow.config.evaluate.suites
        retention = flow.evaluate() if asked else None
        suites = flow.suites()
        if json:
            told = _told(flow, retention, suites)
            try:
                if differences:
                    rows = _differing(flow)[0] if retention else []
                    told["differences"] = [
                        {label: answer.model_dump(mode="json") for label, answer in row.items()} for row in rows
                    ]
            finally:
                print_json(dumps(told))
        elif retention:
            _show_retention(flow, retention)
        for line in () if json else (line for record in suites for line in suite_lines(record)):
            OUT.print(line, soft_wrap=True)
        flow.refresh_report()
        if export or (differences and not json):
            _show_differences(flow, export, overwrite, ERR if json else OUT)

    with guard(out):
        _check(gate, suite or (), export, overwrite)
    options = {"gate": gate, "baseline": baseline, "suites": suite or None}
    once = [f"evaluate.{key}={dumps(value)}" for key, value in options.items() if value is not None]
    run_stage(config, out, settings, overwrite, stage, once=once, console=ERR if json else OUT)
    show_gate(out, ERR if json else OUT)


def report(out: RunFolder = Path("run"), json: Json = False) -> None:
    """Write report.html from the run folder's artifacts."""
    from striate.stages.report import report as write_report

    with guard(out):
        page = write_report(out)
        if json:
            print_json(dumps({"report": str(page)}))
        else:
            OUT.print(str(page), soft_wrap=True)


def show_gate(out: Path, console: Console = OUT) -> None:
    """Print on `console` the gate of the run folder `out`, if it has one, and exit with 1 if a model does not meet it.

    Raises:
        Exit: a condition is not met.
    """
    from striate.artifacts import GateResult, read_document

    path = out / "eval" / "gate.json"
    if not path.is_file():
        return
    from striate.cli.views.evaluation_tables import failing_lines, gate_table, unsure_lines

    with guard(out):
        result = read_document(path, GateResult)
    console.print(gate_table(result))
    for line in unsure_lines(result):
        console.print(line, soft_wrap=True)
    for line in failing_lines(result):
        ERR.print(line, style="bold red", soft_wrap=True)
    if not result.passed:
        raise typer.Exit(1)


def _check(gate: str | None, suites: Sequence[str], export: Path | None, overwrite: bool) -> None:
    """Raise for a gate, a suite or a file that would be refused only after everything was asked."""
    if gate:
        from striate.tasks.scoring.gate import parse_gate

        parse_gate(gate)
    if suites:
        from striate.harness.suites import parse_suite

        for text in suites:
            parse_suite(text)
    if export:
        from striate.tasks.scoring.answer_diff import check_export

        check_export(export, overwrite)


def _told(flow: Flow, retention: Retention | None, suites: Sequence[SuiteRecord]) -> dict[str, Any]:
    """Return what was measured: each model's record, what is kept, the harnesses' figures, and the gate."""
    from striate.artifacts import GateResult, read_if_there
    from striate.pipeline.model_evaluation import read_results

    records = {label: record for label, (record, _) in read_results(flow.out, flow.labels).items()} if retention else {}
    gate = read_if_there(flow.out / "eval" / "gate.json", GateResult)
    return {
        "models": {label: record.model_dump(mode="json") for label, record in records.items()},
        "retention": retention and retention.model_dump(mode="json"),
        "suites": [record.model_dump(mode="json") for record in suites],
        "gate": gate and gate.model_dump(mode="json"),
    }


def _show_retention(flow: Flow, retention: Retention) -> None:
    from striate.cli.views.evaluation_tables import missing_interval_lines, retention_tables
    from striate.pipeline.model_evaluation import read_results

    records = {label: record for label, (record, _) in read_results(flow.out, flow.labels).items()}
    for line in result_lines(retention):
        OUT.print(line, soft_wrap=True)
    tasks = max(len(record.tasks) for record in records.values())
    if tasks > ONE_SCREEN and not VERBOSE.get():
        OUT.print(f"{tasks} tasks: --verbose shows each", soft_wrap=True)
        return
    for table in retention_tables(records, retention, OUT.width):
        OUT.print()
        OUT.print(table)
    for line in missing_interval_lines(records, retention):
        OUT.print(line, soft_wrap=True)


def _differing(flow: Flow) -> tuple[list[dict[str, Prediction]], int]:
    """Return every item that models answer otherwise, each model's answer by its label; and how many were asked."""
    from striate.pipeline.model_evaluation import read_results
    from striate.tasks.scoring.answer_diff import differing

    results, baseline = read_results(flow.out, flow.labels), flow.config.evaluate.baseline
    return differing(results, baseline), len(results[baseline][1])


def _show_differences(flow: Flow, path: Path | None, overwrite: bool, console: Console) -> None:
    from striate.cli.views.evaluation_tables import difference_lines
    from striate.pipeline.references import references_of
    from striate.tasks.scoring.answer_diff import export

    rows, total = _differing(flow)
    if path:
        export(rows, path, overwrite=overwrite)
        console.print(f"{len(rows)} of {total} items in {path}", soft_wrap=True)
        return
    for line in difference_lines(rows, flow.config.evaluate.baseline, references_of(flow.config)):
        console.print(line, soft_wrap=True)
    console.print(f"{len(rows)} of {total} items are answered otherwise by some model", soft_wrap=True)
