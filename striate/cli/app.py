"""The command line: each verb parses, calls one stage or the flow, and prints."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from striate.cli.analysis_verbs import VERBS as ANALYSIS_VERBS
from striate.cli.console import OUT, RichProgress, draw_stack, guard, quiet_libraries, result_lines, show_table
from striate.cli.evaluation_verbs import VERBS as EVALUATION_VERBS
from striate.cli.evaluation_verbs import show_gate
from striate.cli.model_verbs import VERBS
from striate.cli.options import Config, Out, Overwrite, Settings, open_flow, run_stage
from striate.errors import ConfigError, did_you_mean
from striate.version import __version__

if TYPE_CHECKING:
    from striate.artifacts import Region
    from striate.config import RunConfig
    from striate.models.forecast.estimate import Settings as Step
    from striate.models.structure.meta_model import Blueprint
    from striate.pipeline import Flow

app = typer.Typer(
    help="Find the visual region of a vision-language model, tune only it, prune around it, prove what was kept.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]


@app.command()
def quickstart(
    out: Out = Path("striate-quickstart"),
    device: Device = None,
    llm: Annotated[Path | None, typer.Option(help="Local copy of the LLM: a GGUF file or a folder.")] = None,
    vision: Annotated[Path | None, typer.Option(help="Local copy of EfficientNet-Lite0's weights.")] = None,
    settings: Settings = None,
    overwrite: Overwrite = False,
) -> None:
    """Run the whole flow on the built-in LVLM; a CPU and a few minutes are enough."""
    from striate.demo.places import builtin_model, quickstart_config

    with guard(out):
        overrides = list(settings or [])
        if llm or vision:
            quiet_libraries()
            overrides.append(f"model.path={builtin_model(llm, vision, RichProgress())}")
        _everything(quickstart_config(tuple(_with_device(overrides, device))), out, overwrite)


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="Run config (YAML).")],
    out: Out = Path("run"),
    device: Device = None,
    settings: Settings = None,
    overwrite: Overwrite = False,
) -> None:
    """Run the whole flow on your model and your data."""
    from striate.config import load_config

    with guard(out):
        _everything(load_config(config, _with_device(settings, device)), out, overwrite)


for _name, _verb in ANALYSIS_VERBS.items():
    app.command(name=_name)(_verb)


@app.command()
def train(
    config: Config = None, out: Out = Path("run"), settings: Settings = None, overwrite: Overwrite = False
) -> None:
    """Tune the region and the projector: checkpoint/."""

    def stage(flow: Flow) -> None:
        record = flow.train()
        OUT.print(
            f"{record.steps} steps in {record.seconds:.0f} s, loss {record.first_loss:.3f} -> {record.last_loss:.3f}"
        )

    run_stage(config, out, settings, overwrite, stage, together=True)


@app.command()
def prune(
    config: Config = None, out: Out = Path("run"), settings: Settings = None, overwrite: Overwrite = False
) -> None:
    """Remove layers outside the region: pruned/."""

    def stage(flow: Flow) -> None:
        record = flow.prune()
        OUT.print(f"{draw_stack(record.region, record.removed)}  {len(record.removed)} layers removed")
        OUT.print(f"{record.parameters_before:,} -> {record.parameters_after:,} parameters; reloaded and compared")

    run_stage(config, out, settings, overwrite, stage)


for _name, _verb in EVALUATION_VERBS.items():
    app.command(name=_name)(_verb)


@app.command()
def report(out: Out = Path("run")) -> None:
    """Write report.html from the run folder's artifacts."""
    from striate.stages.report import report as write_report

    with guard(out):
        OUT.print(str(write_report(out)), soft_wrap=True)


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Model folder or hub id; weights are not read.")],
    region: Annotated[
        str | None,
        typer.Option("--region", metavar="SPEC", help="What this region would train, and what a step takes."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Forecast: samples of one forward pass.")] = 8,
    text_tokens: Annotated[int, typer.Option(help="Forecast: text tokens of a sample, half of them answers.")] = 200,
    image_tokens: Annotated[
        int | None, typer.Option(help="Forecast: image tokens of a sample, if not one picture's.")
    ] = None,
    accelerator: Annotated[str, typer.Option(help="Forecast: h100, h200, a100, l40s or rtx4090.")] = "h100",
) -> None:
    """Show an LVLM's parts, what a region would train, and a forecast of a step's memory and time."""
    with guard(None):
        quiet_libraries()
        from striate.models.forecast.estimate import Settings as Step
        from striate.models.structure.image_tokens import image_tokens as count_image_tokens
        from striate.models.structure.meta_model import blueprint, trained_counts
        from striate.stages.select import select as select_region

        plan = blueprint(model)
        OUT.print(f"{plan.anatomy.model_type}: {plan.anatomy.num_layers} decoder layers at {plan.anatomy.layers_name}")
        OUT.print(str(count_image_tokens(plan.model)), soft_wrap=True)
        show_table("", ["component", "parameters", "share"], plan.rows())
        if region:
            chosen = select_region(plan.anatomy.num_layers, region)
            counts = trained_counts(plan, chosen)
            OUT.print(f"{draw_stack(chosen)}  {len(chosen)} of {chosen.num_layers} layers")
            OUT.print(f"layers {', '.join(map(str, chosen.layers)) or 'none'}, and the projector", soft_wrap=True)
            rows = [[method, f"{count:,}", f"{100 * count / plan.total:.2f}%"] for method, count in counts.items()]
            show_table("", ["method", "trainable parameters", "of the model"], rows)
            step = Step(batch=batch, text_tokens=text_tokens, answer_tokens=text_tokens // 2, accumulated=True)
            _show_forecast(plan, chosen, step, accelerator, image_tokens)


@app.command(name="ls")
def list_names(what: Annotated[str, typer.Argument(help="scorers, selectors, tasks or families")]) -> None:
    """List what exists, one line each."""
    with guard(None):
        rows = _listings().get(what)
        if rows is None:
            hint = f"{did_you_mean(what, _listings())}for example `striate ls scorers`"
            raise ConfigError(f"unknown list {what!r}", ", ".join(_listings()), hint)
        show_table("", ["name", "what it is"], rows())


@app.command()
def check(config: Annotated[Path, typer.Argument(help="Run config (YAML).")], settings: Settings = None) -> None:
    """Validate a run config, its SPECs and its data, without loading a model."""
    from striate.config import load_config
    from striate.pipeline.validate import check_run

    with guard(None):
        for line in check_run(load_config(config, settings or [])):
            OUT.print(line, soft_wrap=True)


@app.command()
def version() -> None:
    """Print the version."""
    OUT.print(__version__)


for _name, _verb in VERBS.items():
    app.command(name=_name)(_verb)


def main() -> None:
    """Run the command line."""
    app()


def _everything(config: RunConfig, out: Path, overwrite: bool) -> None:
    """Run the whole flow and print its result."""
    from striate.artifacts import Retention, read_document

    begin = time.perf_counter()
    page = open_flow(config, out, overwrite).everything()
    OUT.print()
    if (out / "eval" / "retention.json").is_file():
        for line in result_lines(read_document(out / "eval" / "retention.json", Retention)):
            OUT.print(line, soft_wrap=True)
    OUT.print(f"report  {page.resolve()}  ({time.perf_counter() - begin:.0f} s)", soft_wrap=True)
    show_gate(out)


def _show_forecast(plan: Blueprint, region: Region, step: Step, name: str, image_tokens: int | None) -> None:
    """Print what one step of every method takes."""
    from striate.models.forecast.estimate import HEADER, accelerator, forecast_rows, forecasts

    device = accelerator(name)
    rows = forecast_rows(forecasts(plan, region, step, device, image_tokens), device)
    OUT.print(
        f"forecast of one step on {device.title}: {step.batch} samples of {step.text_tokens} text tokens,"
        f" LoRA rank {step.r}; GiB and milliseconds",
        soft_wrap=True,
    )
    show_table("", list(HEADER), rows)
    OUT.print(
        "bfloat16 with float32 masters of what trains, gradients kept between micro-batches;"
        " accelerators other than h100 are uncalibrated (docs/forecast.md)",
        style="dim",
        soft_wrap=True,
    )


def _with_device(settings: list[str] | None, device: str | None) -> list[str]:
    """Return the overrides with the device among them."""
    return [*(settings or []), *([f"machine.device={device}"] if device else [])]


def _listings() -> dict[str, Callable[[], list[list[str]]]]:
    """Return what `ls` can list; each list is made when asked for, since some need torch."""

    def scorers() -> list[list[str]]:
        from striate.scorers import SCORERS

        return [[strategy.name, strategy.summary] for strategy in SCORERS]

    def selectors() -> list[list[str]]:
        from striate.selectors import SELECTORS

        return [[strategy.name, strategy.summary] for strategy in SELECTORS]

    def tasks() -> list[list[str]]:
        from striate.harness.suites import HARNESSES
        from striate.tasks.benchmarks import BENCHMARKS
        from striate.tasks.metrics import METRICS

        metrics = [[strategy.name, f"metric: {strategy.summary}"] for strategy in METRICS]
        benchmarks = [[f"{row.name}:FOLDER", f"benchmark: {row.summary}"] for row in BENCHMARKS]
        return [*metrics, *benchmarks, *([f"{row.name}:TASKS", f"suite: {row.what}"] for row in HARNESSES.values())]

    def families() -> list[list[str]]:
        from striate.models.structure.families import FAMILIES

        return [[family.model_type, family.title] for family in FAMILIES]

    return {"scorers": scorers, "selectors": selectors, "tasks": tasks, "families": families}


if __name__ == "__main__":
    main()
