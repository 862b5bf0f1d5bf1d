"""The verb inspect: a model's parts, what a region would train, and a forecast of a step's memory and time."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from json import dumps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from striate.cli.boundary import guard
from striate.cli.console import OUT, draw_stack, print_json, quiet_libraries, show_table
from striate.cli.options import Json, located

if TYPE_CHECKING:
    from collections.abc import Mapping

    from striate.artifacts import Region
    from striate.config import TrainSection
    from striate.models.forecast.estimate import Settings as Step
    from striate.models.structure.meta_model import Blueprint


def register(app: typer.Typer) -> None:
    """Add this module's verb to the command line."""
    app.command("inspect")(inspect)


def inspect(
    model: Annotated[str, typer.Argument(help="Model folder, hub id or builtin; weights are not read.")],
    region: Annotated[
        str | None,
        typer.Option("--region", metavar="SPEC", help="What this region would train, and what a step takes."),
    ] = None,
    *,
    remove: Annotated[
        str | None, typer.Option(metavar="N|P%", help="What is left without so many layers outside the region.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Forecast: samples of one forward pass.")] = 8,
    text_tokens: Annotated[int, typer.Option(help="Forecast: text tokens of a sample, half of them answers.")] = 200,
    image_tokens: Annotated[
        int | None, typer.Option(help="Forecast: image tokens of a sample, if not one picture's.")
    ] = None,
    accelerator: Annotated[str, typer.Option(help="Forecast: h100, h200, a100, l40s or rtx4090.")] = "h100",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="train.KEY=VALUE", help="What trains, e.g. train.vision=lora.")
    ] = None,
    json: Json = False,
) -> None:
    """Show an LVLM's parts, and what a region would train. With a forecast of a step's memory and time."""
    with guard(None):
        quiet_libraries()
        place = located(model)
        from striate.config import parse_config
        from striate.models.forecast.layer_shapes import model_shape
        from striate.models.forecast.settings import Settings as Step
        from striate.models.structure.image_tokens import image_tokens as count_image_tokens
        from striate.models.structure.meta_model import blueprint
        from striate.stages.select import select
        from striate.training.what_trains import encoder_layers_of

        plan = blueprint(place)
        pictures = count_image_tokens(plan.model)
        chosen = select(plan.anatomy.num_layers, region) if region else None
        section = parse_config({"model": {"path": model}, "data": {"train": ["-"]}}, settings or []).train
        counts = _trained_counts(plan, chosen, section) if chosen else {}
        encoder = encoder_layers_of(section, len(model_shape(plan, image_tokens).encoder)) if chosen else ()
        step = replace(
            Step.of(section, encoder),
            batch=batch,
            text_tokens=text_tokens,
            answer_tokens=text_tokens // 2,
            accumulated=True,
        )
        cut = None if remove is None else _pruned(plan, chosen or select(plan.anatomy.num_layers, "none"), remove)
        if json:
            told = _told(plan, chosen, counts) | {"pruned": cut and asdict(cut), "image_tokens": str(pictures)}
            if chosen:
                told["forecast"] = _forecast(plan, chosen, step, accelerator, image_tokens)
            print_json(dumps(told))
            return
        OUT.print(f"{plan.anatomy.model_type}: {plan.anatomy.num_layers} decoder layers at {plan.anatomy.layers_name}")
        OUT.print(str(pictures), soft_wrap=True)
        show_table("", ["component", "parameters", "share"], plan.rows())
        if chosen:
            _show_trained(plan, chosen, section, counts)
            _show_forecast(plan, chosen, step, accelerator, image_tokens)
        if cut:
            OUT.print(cut.told(plan.total, plan.anatomy.num_layers), soft_wrap=True)


def _told(plan: Blueprint, region: Region | None, counts: Mapping[str, int]) -> dict[str, Any]:
    from striate.models.structure.anatomy import COMPONENTS

    components = {name: plan.count(name) for name in COMPONENTS}
    return {
        "model_type": plan.anatomy.model_type,
        "num_layers": plan.anatomy.num_layers,
        "layers_name": plan.anatomy.layers_name,
        "parameters": plan.total,
        "components": {name: count for name, count in components.items() if count},
        "region": region and region.model_dump(mode="json"),
        "trainable": counts,
    }


@dataclass(frozen=True)
class _Cut:
    """How many layers go, and the most and the fewest parameters that are left: layers may differ in size."""

    removed: int
    most: int
    least: int

    def told(self, total: int, num_layers: int) -> str:
        left = f"{self.most:,}" if self.most == self.least else f"{self.least:,} to {self.most:,}"
        share, speed = 100 * (1 - self.least / total), num_layers / (num_layers - self.removed)
        return (
            f"without {self.removed} of {num_layers} layers: {total:,} -> {left} parameters ({share:.1f}% fewer);"
            f" the layers that are left take 1/{speed:.2f} of the time"
        )


def _pruned(plan: Blueprint, region: Region, remove: str) -> _Cut:
    from striate.models.structure.meta_model import pruned_counts
    from striate.pruning.removal import layers_to_remove
    from striate.stages.prune import check_removal

    count = layers_to_remove(int(remove) if remove.isdecimal() else remove, region.num_layers)
    check_removal(region, count)
    return _Cut(count, *pruned_counts(plan, region, count))


def _trained_counts(plan: Blueprint, region: Region, section: TrainSection) -> dict[str, int]:
    """Return how many parameters train, with LoRA and in full, as far as the model has a place for them.

    A LoRA pair on a matrix of shape (out, in) has r * (in + out) parameters (Hu et al., arXiv 2106.09685).
    """
    from striate.models.trainable.apply import apply_region
    from striate.models.trainable.counts import adapter_parameters
    from striate.training.what_trains import adapters_of, beside_of

    model, beside, counts = plan.model, beside_of(plan.model, section), {}
    by_adapters = "lora" in (beside.projector, beside.vision)
    if region.layers or by_adapters:
        counts[f"LoRA, r {section.lora.r}"] = adapter_parameters(model, adapters_of(model, region, section))
    if not by_adapters:
        layers = beside.vision_region
        opened = apply_region(model, region, "full", beside.projector, vision=beside.vision, vision_region=layers)
        counts["full"] = opened.trainable
    return counts


def _show_trained(plan: Blueprint, region: Region, section: TrainSection, counts: Mapping[str, int]) -> None:
    parts = {"the projector": section.projector, "layers of the vision encoder": section.vision}
    words = {"full": "", "lora": " by adapters"}
    beside = "".join(f", and {part}{words[how]}" for part, how in parts.items() if how != "frozen")
    OUT.print(f"{draw_stack(region)}  {len(region)} of {region.num_layers} layers")
    OUT.print(f"layers {', '.join(map(str, region.layers)) or 'none'}{beside}", soft_wrap=True)
    rows = [[method, f"{count:,}", f"{100 * count / plan.total:.2f}%"] for method, count in counts.items()]
    show_table("", ["method", "trainable parameters", "of the model"], rows)


def _forecast(plan: Blueprint, region: Region, step: Step, name: str, image_tokens: int | None) -> list[dict[str, Any]]:
    """Return the forecasts of one step: bytes by kind, milliseconds, and whether they fit the accelerator."""
    from striate.models.forecast.estimate import accelerator, forecasts

    device = accelerator(name)
    return [
        {
            "accelerator": device.title,
            "method": one.settings.method,
            "checkpointed": one.settings.checkpointing,
            "bytes": {
                "weights": one.memory.weights,
                "states": one.memory.states,
                "gradients": one.memory.gradients,
                "saved": one.memory.activations,
                "peak": one.memory.peak,
            },
            "milliseconds": one.milliseconds,
            "fits": one.fits,
        }
        for one in forecasts(plan, region, step, device, image_tokens)
    ]


def _show_forecast(plan: Blueprint, region: Region, step: Step, name: str, image_tokens: int | None) -> None:
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
