"""The verb bench: speed and memory of models on this machine."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from striate.cli.boundary import guard
from striate.cli.console import ERR, OUT, RichProgress, print_json, quiet_libraries
from striate.cli.options import Device, Dtype, Json, Only, chosen_places, load_place
from striate.storage.read_files import user_path

if TYPE_CHECKING:
    from striate.artifacts import Bench

FILE = "speed.json"
Sources = Annotated[list[str], typer.Argument(metavar="MODEL|RUN...", help="Models, and runs with all their models.")]


def register(app: typer.Typer) -> None:
    """Add this module's verb to the command line."""
    app.command("bench")(bench)


def bench(
    sources: Sources,
    *,
    only: Only = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=1, max=10**6, help="Tokens of a prompt with a picture; 776 where that fits.")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=2, max=10**6, help="Tokens that are written.")] = 64,
    prompts: Annotated[int, typer.Option(min=1, max=10**4, help="Prompts side by side.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, max=10**4, help="Rounds that count.")] = 5,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Measure speed and memory of models in turns: speed.json. These are time to first token, prefill and decode."""
    with guard(None):
        from striate.artifacts import write_document
        from striate.pipeline.run_models import is_run
        from striate.storage.atomic import check_file_place
        from striate.storage.held_folders import hold

        runs = [user_path(source) for source in sources if is_run(source)]
        kept, holder = runs[0] / FILE if len(runs) == 1 else None, _Holder()
        for run in runs:
            # What trains meanwhile would be measured too.
            hold(run, holder)
        if kept:
            check_file_place(kept)
        places = chosen_places(sources, only)
        quiet_libraries()
        from striate.stages.bench import BenchSettings
        from striate.stages.bench import bench as measure

        settings = BenchSettings(prompt_tokens, new_tokens, prompts, repeats)
        loads = {name: partial(load_place, place, device, dtype) for name, place in places.items()}
        measured = measure(loads, settings, RichProgress(ERR if json else OUT))
        if kept:
            write_document(kept, measured)
        _show(measured, kept, json)


class _Holder:
    """What run folders are held by meanwhile."""


def _show(measured: Bench, kept: Path | None, as_json: bool) -> None:
    from striate.cli.views.bench_table import bench_table, conditions_line, ratio_lines

    if as_json:
        print_json(measured.model_dump_json())
        return
    OUT.print(conditions_line(measured), soft_wrap=True)
    OUT.print(bench_table(measured))
    for line in ratio_lines(measured):
        OUT.print(line, soft_wrap=True)
    if kept:
        OUT.print(f"{kept}; `striate report` shows it", style="dim", soft_wrap=True)
