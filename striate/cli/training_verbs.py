"""Verbs that change weights: train and prune."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from striate.cli.console import ERR, OUT, draw_stack, print_json
from striate.cli.options import Config, Json, Out, Overwrite, Settings, run_stage
from striate.config import Metric
from striate.config.train_settings import FLOAT32
from striate.wording import plural

if TYPE_CHECKING:
    from striate.pipeline import Flow


Curve = Annotated[
    str | None,
    typer.Option("--curve", metavar="FROM:TO[:STEP]", help="Only try numbers of layers, e.g. 0:50%: curve.json."),
]

Rates = Annotated[
    str | None, typer.Option("--rates", metavar="LR,LR,...", help="Rates to try; five around train.lr by default.")
]
Minutes = Annotated[float, typer.Option("--minutes", min=0.01, max=1e6, help="Budget of all trials together.")]
By = Annotated[
    Metric,
    typer.Option(
        "--by",
        metavar="METRIC",
        help="What decides, on held-out samples: loss, exact_match, or one of them of a kind, such as visual_loss.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add this module's verbs to the command line."""
    app.command("train")(train)
    app.command("find-lr")(find_lr)
    app.command("prune")(prune)


def train(
    config: Config = None,
    out: Out = Path("run"),
    settings: Settings = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Tune the region and the projector: checkpoint/."""

    def stage(flow: Flow) -> None:
        record = flow.train()
        if json:
            print_json(record.model_dump_json())
            return
        done, change = plural(record.steps, "step"), f"{record.first_loss:.3f} -> {record.last_loss:.3f}"
        OUT.print(f"{done} in {record.seconds:.0f} s, loss {change}")
        if held_out := record.validation:
            samples, kept = held_out.visual_samples + held_out.text_samples, held_out.kept_step
            losses = f"{held_out.first['loss']:.3f} -> {held_out.last['loss']:.3f}"
            OUT.print(f"held out: loss {losses} on {samples} samples; the weights of step {kept} are kept")

    run_stage(config, out, settings, overwrite, stage, together=True, console=ERR if json else OUT)


def find_lr(
    config: Config = None,
    out: Out = Path("run"),
    *,
    rates: Rates = None,
    minutes: Minutes = 10.0,
    by: By = "exact_match",
    settings: Settings = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Try learning rates in short trainings within a budget. Writes find_lr.json, and prints the line to set."""
    from striate.cli.views.rate_table import advice, rate_table

    tried = _rates(rates)

    def stage(flow: Flow) -> None:
        if flow.keys.choice_needs_scores:
            flow.analyze()
        flow.select()
        if flow.config.prune.first:
            flow.prune()
        found = flow.find_lr(tried, minutes, by)
        if json:
            print_json(found.model_dump_json())
            return
        OUT.print(rate_table(found))
        for line in advice(found):
            OUT.print(line, soft_wrap=True, no_wrap=line.startswith("--set"))

    run_stage(config, out, settings, overwrite, stage, console=ERR if json else OUT)


def _rates(text: str | None) -> tuple[float, ...]:
    """Return the rates of `1e-4,2e-4`, lowest first; none where nothing is given.

    Raises:
        typer.BadParameter: one is no number over 0, or there are fewer than two.
    """
    if text is None:
        return ()
    try:
        rates = sorted({float(one) for one in text.split(",")})
    except ValueError:
        rates = []
    if len(rates) < 2 or not 0 < rates[0] <= rates[-1] <= FLOAT32:
        raise typer.BadParameter(f"{text[:60]!r}; two or more numbers over 0 with commas between them, as 1e-4,2e-4")
    return tuple(rates)


def prune(
    config: Config = None,
    out: Out = Path("run"),
    *,
    curve: Curve = None,
    settings: Settings = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Remove layers outside the region, and heal: pruned/."""

    def stage(flow: Flow) -> None:
        _show_pruned(flow, json) if curve is None else _show_curve(flow, curve, json)
        flow.refresh_report()

    console = ERR if json else OUT
    run_stage(config, out, settings, overwrite, stage, console=console, curve=curve is not None)


def _show_pruned(flow: Flow, json: bool) -> None:
    from striate.artifacts import HealRecord, read_document

    record = flow.prune()
    healed = read_document(flow.out / "heal.json", HealRecord) if flow.config.heals else None
    if json:
        print_json(dumps({"prune": record.model_dump(mode="json"), "heal": healed and healed.model_dump(mode="json")}))
        return
    OUT.print(f"{draw_stack(record.region, record.removed)}  {plural(len(record.removed), 'layer')} removed")
    OUT.print(f"{record.parameters_before:,} -> {record.parameters_after:,} parameters; reloaded and compared")
    if healed:
        losses = f"mean loss {healed.first['loss']:.3f} -> {healed.last['loss']:.3f}"
        OUT.print(f"healed: {plural(healed.steps, 'step')} in {healed.seconds:.0f} s, {losses}; reloaded and compared")


def _show_curve(flow: Flow, spec: str, json: bool) -> None:
    from striate.cli.views.curve_table import curve_table
    from striate.cli.views.narrow_tables import fitting

    curve = flow.curve(spec)
    if json:
        print_json(curve.model_dump_json())
        return
    for part in fitting(curve_table(curve), OUT.width):
        OUT.print(part)
    if curve.recommendation:
        OUT.print(curve.recommendation.text, soft_wrap=True)
    OUT.print(f"{flow.out / 'curve.json'} and curve.csv; `striate report` draws them", soft_wrap=True)
