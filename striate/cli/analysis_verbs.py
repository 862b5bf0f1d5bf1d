"""Verbs about layer scores and regions: analyze, with its views, comparison and export, and select."""

from __future__ import annotations

from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from striate.cli.boundary import guard
from striate.cli.console import ERR, OUT, VERBOSE, draw_stack, print_json
from striate.cli.options import Config, Json, Out, Overwrite, Replace, Settings, run_stage
from striate.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from striate.artifacts import Region, Scores
    from striate.pipeline import Flow

By = Annotated[
    Literal["all", "task"] | None, typer.Option("--by", help="Score the samples of each task apart as well: task.")
]
Compare = Annotated[
    tuple[Path, Path] | None,
    typer.Option("--compare", metavar="RUN1 RUN2", help="Compare the scores of two run folders; runs nothing."),
]
Export = Annotated[
    Path | None, typer.Option("--export", metavar="FILE", help="Write all scores to a .csv or .json file.")
]
Beside = Annotated[
    list[str] | None, typer.Option("--beside", metavar="SPEC", help="Draw this region below; may be given again.")
]


def register(app: typer.Typer) -> None:
    """Add this module's verbs to the command line."""
    app.command("analyze")(analyze)
    app.command("select")(select)


def analyze(
    config: Config = None,
    out: Out = Path("run"),
    *,
    by: By = None,
    compare: Compare = None,
    export: Export = None,
    settings: Settings = None,
    overwrite: Replace = False,
    json: Json = False,
) -> None:
    """Score every decoder layer for vision and text: scores.json."""
    if compare:
        with guard(None):
            _check_alone(config, export, settings, overwrite)
            _show_comparison(*compare, by, json)
        return

    def stage(flow: Flow) -> None:
        from striate.scores.export import export_scores

        scores = flow.analyze()
        if json:
            print_json(scores.model_dump_json())
        else:
            _show_scores(scores, _region(out, scores.num_layers))
        if export:
            export_scores(scores, export, overwrite=overwrite)
            (ERR if json else OUT).print(f"scores in {export}", soft_wrap=True)

    with guard(out):
        if export:
            from striate.scores.export import check_export

            check_export(export, overwrite)
    given = [*(settings or []), *([f"analyze.by={by}"] if by else [])]
    run_stage(config, out, given, overwrite, stage, console=ERR if json else OUT)


def select(
    config: Config = None,
    out: Out = Path("run"),
    beside: Beside = None,
    settings: Settings = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Choose the visual region: region.json."""

    def stage(flow: Flow) -> None:
        from striate.selectors.spec.grammar import parse_spec
        from striate.stages.select import select as choose

        for spec in beside or []:
            parse_spec(spec)
        region = flow.select()
        others = [choose(region.num_layers, spec, flow.scores_if_any()) for spec in beside or []]
        if json:
            told = {
                "region": region.model_dump(mode="json"),
                "beside": [each.model_dump(mode="json") for each in others],
            }
            print_json(dumps(told))
            return
        width = max(len(shown.spec) for shown in (region, *others)) if others else 0
        for shown in (region, *others):
            OUT.print(_line(shown, region, width), soft_wrap=True)

    run_stage(config, out, settings, overwrite, stage, console=ERR if json else OUT)


def _line(region: Region, chosen: Region, width: int) -> str:
    """Return a region on one line; of one beside the chosen region also how many layers they share."""
    label = f"{region.spec.ljust(width)}  " if width else ""
    common = len(set(region.layers) & set(chosen.layers))
    shared = "" if region is chosen else f", {common} of them in the chosen region"
    return f"{label}{draw_stack(region, region.removable)}  {len(region)} of {region.num_layers} layers{shared}"


def _show_scores(scores: Scores, region: Region | None) -> None:
    from striate.cli.views.score_tables import agreement_table, score_lines, stability_table, stack_tables

    if not VERBOSE.get():
        for line in score_lines(scores, region):
            OUT.print(line, soft_wrap=True)
        return
    for table in (*stack_tables(scores, region, OUT.width), agreement_table(scores), stability_table(scores)):
        if table:
            OUT.print(table)
            OUT.print()


def _show_comparison(first: Path, second: Path, by: str | None, json: bool) -> None:
    from striate.cli.views.score_tables import comparison_tables
    from striate.scores.comparison import compare_scores, shared_tasks

    scores, others = _scores(first), _scores(second)
    tasks = [None, *(shared_tasks(scores, others) if by == "task" else [])]
    compared = {task: compare_scores(scores, others, task) for task in tasks}
    if json:
        rows = [{"task": task, "scorers": [asdict(row) for row in found]} for task, found in compared.items()]
        print_json(dumps({"first": str(first), "second": str(second), "compared": rows}))
        return
    for task, found in compared.items():
        OUT.print(f"{first} and {second}{f', task {task}' if task else ''}", style="bold", soft_wrap=True)
        for table in comparison_tables(found):
            OUT.print(table)
            OUT.print()


def _scores(run: Path) -> Scores:
    from striate.artifacts import Scores, read_document

    path = run / "scores.json" if run.is_dir() else run
    if not path.is_file():
        raise ArtifactError(
            f"{run} has no scores" if run.is_dir() else f"no run folder at {run}",
            "--compare RUN1 RUN2, each a run folder with scores.json, or such a file",
            "check the path, or score its layers first with `striate analyze`",
        )
    return read_document(path, Scores)


def _region(out: Path, num_layers: int) -> Region | None:
    """Return the region that was chosen before in the run folder, if there is one for as many layers."""
    from striate.artifacts import Region, read_document

    path = out / "region.json"
    region = read_document(path, Region) if path.is_file() else None
    return region if region and region.num_layers == num_layers else None


def _check_alone(config: Path | None, export: Path | None, settings: list[str] | None, overwrite: bool) -> None:
    """Raise where --compare is given with what has no effect beside it."""
    options = {"a run config": config, "--export": export, "--set": settings, "--overwrite": overwrite}
    idle = [name for name, value in options.items() if value]
    if idle:
        raise ConfigError(
            f"--compare reads two finished runs: {' and '.join(idle)} has no effect",
            "--compare RUN1 RUN2, with --by task if wished",
            "leave it out, or run the analysis without --compare",
        )
