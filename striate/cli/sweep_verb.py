"""The verb about many runs: sweep."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from striate.cli.boundary import guard
from striate.cli.console import ERR, OUT, RichProgress, print_json, quiet_libraries
from striate.cli.options import Json, Overwrite

SweepFile = Annotated[Path, typer.Argument(help="Sweep (YAML): base, and grid, runs or folders.")]
SweepOut = Annotated[Path, typer.Option("--out", help="Folder of the sweep: made, or continued.")]
Only = Annotated[bool, typer.Option("--plan", help="Only list the runs, each checked.")]
On = Annotated[str, typer.Option("--on", help="local, ray, ray:ADDRESS or slurm.")]


def register(app: typer.Typer) -> None:
    """Add this module's verb to the command line."""
    app.command("sweep")(sweep)


def sweep(
    config: SweepFile,
    out: SweepOut = Path("sweep"),
    *,
    on: On = "local",
    plan: Only = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Run a grid of runs into one table and page. Several run at a time: sweep.json, sweep.html."""
    from striate.cli.views.sweep_table import sweep_lines
    from striate.pipeline.sweeps.plan import Plan

    with guard(out):
        planned = Plan(config)
        if plan and json:
            print_json(dumps([run.name for run in planned.runs]))
            return
        if plan:
            for run in planned.runs:
                OUT.print(run.name, soft_wrap=True, no_wrap=True)
            return
        quiet_libraries()
        from striate.pipeline.sweeps.sweep import open_sweep

        record = open_sweep(planned, out, RichProgress(ERR if json else OUT), on, overwrite).run()
        if json:
            print_json(record.model_dump_json())
        else:
            for part in sweep_lines(record, OUT.width):
                OUT.print(part, highlight=False, soft_wrap=isinstance(part, str))
            OUT.print(f"{out / 'sweep.html'} and sweep.json", soft_wrap=True)
        if failed := record.count("failed"):
            ERR.print(f"{failed} of {len(record.runs)} runs failed; {out / 'logs'} has what they said", soft_wrap=True)
            raise typer.Exit(1)
