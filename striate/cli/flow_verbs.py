"""Verbs about a whole run: quickstart, run and check."""

from __future__ import annotations

import time
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from striate.cli.boundary import guard
from striate.cli.console import (
    ERR,
    OUT,
    RichProgress,
    from_here,
    print_json,
    quiet_libraries,
    result_lines,
    saved_line,
)
from striate.cli.evaluation_verbs import show_gate
from striate.cli.options import Config, Json, Out, Overwrite, Settings, config_file, open_flow

if TYPE_CHECKING:
    from striate.config import RunConfig

Planned = Annotated[Path, typer.Option("--out", help="Where the run folder would lie.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
RunFile = Annotated[Path, typer.Argument(help="Run config (YAML).")]


def register(app: typer.Typer) -> None:
    """Add this module's verbs to the command line."""
    app.command("quickstart")(quickstart)
    app.command("run")(run)
    app.command("check")(check)


def quickstart(
    out: Out = Path("striate-quickstart"),
    *,
    device: Device = None,
    llm: Annotated[Path | None, typer.Option(help="Local copy of the LLM: a GGUF file or a folder.")] = None,
    vision: Annotated[Path | None, typer.Option(help="Local copy of EfficientNet-Lite0's weights.")] = None,
    settings: Settings = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Run the whole flow on the built-in LVLM. A CPU and a few minutes are enough."""
    from striate.demo.places import builtin_model, quickstart_config

    with guard(out):
        overrides = list(settings or [])
        if llm or vision:
            quiet_libraries()
            overrides.append(f"model.path={builtin_model(llm, vision, RichProgress(ERR if json else OUT))}")
        _everything(quickstart_config(tuple(_with_device(overrides, device))), out, overwrite, json)


def run(
    config: Config = None,
    out: Out = Path("run"),
    device: Device = None,
    settings: Settings = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Run the whole flow on your model and your data."""
    from striate.config import load_config

    with guard(out):
        _everything(load_config(config or config_file(None, out), _with_device(settings, device)), out, overwrite, json)


def check(config: RunFile, settings: Settings = None, out: Planned = Path("run"), json: Json = False) -> None:
    """Validate a run config and its data. No model is loaded; time, memory and disk are forecast."""
    from striate.config import load_config
    from striate.pipeline.validate import check_run

    with guard(None):
        quiet_libraries()
        lines = check_run(load_config(config, settings or []), out)
        if json:
            rows = [line.split(maxsplit=1) for line in lines]
            print_json(dumps([{"part": part, "found": found} for part, found in rows]))
            return
        for line in lines:
            OUT.print(line, soft_wrap=True)


def _everything(config: RunConfig, out: Path, overwrite: bool, json: bool) -> None:
    from striate.artifacts import GateResult, PruneRecord, Retention, read_if_there

    begin, console = time.perf_counter(), ERR if json else OUT
    page = open_flow(config, out, overwrite, console=console).everything()
    seconds = time.perf_counter() - begin
    retention = read_if_there(out / "eval" / "retention.json", Retention)
    pruned = read_if_there(out / "prune.json", PruneRecord) if config.prune.remove else None
    if json:
        gate = read_if_there(out / "eval" / "gate.json", GateResult)
        parts = {"retention": retention, "prune": pruned, "gate": gate}
        told = {name: part and part.model_dump(mode="json") for name, part in parts.items()}
        print_json(dumps({"report": str(page.resolve()), "seconds": round(seconds, 1), **told}))
    else:
        lines = [*(result_lines(retention) if retention else ()), *([saved_line(pruned)] if pruned else ())]
        for line in ["", *lines, f"report  {from_here(page)}  ({seconds:.0f} s)"]:
            OUT.print(line, soft_wrap=True)
    show_gate(out, console)


def _with_device(settings: list[str] | None, device: str | None) -> list[str]:
    return [*(settings or []), *([f"machine.device={device}"] if device else [])]
