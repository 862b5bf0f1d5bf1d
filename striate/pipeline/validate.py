"""Validate a run before it starts: names, SPECs, data and model path, without loading a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from striate.artifacts import Region, TrainRecord, read_if_there
from striate.config import RunConfig, is_builtin
from striate.data.pictures import PictureLimits
from striate.data.reading import joined
from striate.pipeline.checking.data_ahead import check_held_out, check_learning, check_lengths, mixed_sources, read_data
from striate.pipeline.checking.model_ahead import model_plan, unreached
from striate.pipeline.checking.packs_ahead import (
    check_run_gate,
    check_until_gate,
    pack_name_of,
    read_test_pack,
    until_names,
)
from striate.pipeline.checking.region_ahead import check_region_ahead
from striate.pipeline.ineffective_settings import ineffective_settings
from striate.pipeline.preflight import (
    check_cache_folder,
    check_loggers,
    check_number_format,
    num_layers_of,
    prompts_fit,
)
from striate.pipeline.run_inputs import check_model_path, locate_base
from striate.pipeline.settled_rates import told_rates
from striate.progress import Silent
from striate.pruning.removal import layers_to_remove
from striate.selectors.spec.grammar import parse_spec
from striate.selectors.spec.required_scores import check_specs
from striate.tasks.packs.findings import findings
from striate.tasks.packs.sources import check_pack_names
from striate.wording import plural

if TYPE_CHECKING:
    from striate.data.checks.length_check import Lengths
    from striate.data.samples import Sample
    from striate.models.structure.meta_model import Blueprint
    from striate.tasks.packs.items import Pack


def check_run(config: RunConfig, out: Path = Path("run")) -> Iterator[str]:
    """Yield a line for each part of `config` that was found right, and last that it is ready, and what it will take.

    `out` is where its run folder would lie.

    Raises:
        StriateError: the first part that is wrong; last, that the model can't be had here.
    """
    spec, limits = parse_spec(config.select.region), PictureLimits.of(config.machine)
    check_specs(config, spec)
    yield f"region    {config.select.region}"
    if config.train.image_tokens != "all":
        yield f"images    {_image_tokens(config, out)}"
    yield f"scorers   {_scorers(config)}"
    yield from _machine(config)
    check_model_path(config.model.path, "model.path")
    for path in config.evaluate.others.values():
        check_model_path(path, "evaluate.others")
    plan, told = model_plan(config)
    yield f"model     {told}"
    _check_base(config, plan)
    region = check_region_ahead(config, spec, plan.anatomy.num_layers) if plan else None
    parts: list[Sequence[Sample]] = []
    yield from _data(config, limits, parts)
    samples = joined(parts)
    found: Lengths | None = None
    if not any(map(is_builtin, config.data.train)):
        check_learning(config, spec, samples)
        if plan:
            found, told = check_lengths(config, limits, samples)
            yield f"lengths   {told}"
    if region and (rates := told_rates(config, region)):
        yield f"rates     {rates}"
    if config.prune.remove:
        yield f"prune     {_removal(config, region)}"
    if config.heals:
        yield f"heal      {_healing(config)}"
    yield from _tests(config, limits, samples, fetches=plan is not None)
    yield from ineffective_settings(config)
    if plan is None and not is_builtin(config.model.path):
        raise unreached(config.model.path)
    yield f"ready     {_ready(config, plan, region, found, out)}"


def _machine(config: RunConfig) -> Iterator[str]:
    """Yield a line for each thing that the machine must have for the run."""
    from striate.models.io.devices import resolve_device

    check_loggers(config)
    check_cache_folder(config)
    check_number_format(config, resolve_device(config.machine.device))
    if config.train.method == "qlora":
        yield f"qlora     {_quantization(config.machine.device)}"
    if config.train.optimizer != "adamw":
        yield f"optimizer {_optimizer(config)}"


def _data(config: RunConfig, limits: PictureLimits, parts: list[Sequence[Sample]]) -> Iterator[str]:
    """Yield a line for each file or folder of samples; `parts` gets those to train on."""
    healing = config.heal.text_data if config.heals else ()
    for name in dict.fromkeys((*config.data.train, *config.data.calibration, *healing)):
        read = parts if name in config.data.train else []
        yield f"data      {read_data(name, config, limits, read)}"
    if config.data.mix or config.data.text:
        yield f"mix       {mixed_sources(config)}"
    if config.data.validate:
        yield f"validate  {check_held_out(config, limits)}"


def _tests(config: RunConfig, limits: PictureLimits, samples: Sequence[Sample], *, fetches: bool) -> Iterator[str]:
    """Yield a line for each test pack, each gate, each suite, and for everything odd about them and the samples.

    Of models of the hub the lengths of items are counted if `fetches`.
    """
    check_pack_names([pack_name_of(name) for name in config.evaluate.packs])
    check_pack_names([pack_name_of(name) for name in until_names(config)])
    packs: list[Pack] = []
    until_packs: list[Pack] = []
    with ExitStack() as stack:
        for names, read_packs in ((config.evaluate.packs, packs), (until_names(config), until_packs)):
            for name in names:
                yield f"pack      {read_test_pack(name, config, read_packs, limits, stack)}"
            fit = prompts_fit(config, config.model.path, read_packs, fetches=fetches) if read_packs else ()
            for line in fit:
                yield f"prompts   {line}"
        for line in findings(samples, [*packs, *(pack for pack in until_packs if pack not in packs)]):
            yield f"note      {line}"
    if config.prune.until:
        yield f"until     {check_until_gate(config, packs, until_packs)}"
    if config.evaluate.gate:
        yield f"gate      {check_run_gate(config, packs)}"
    for text in config.evaluate.suites:
        yield f"suite     {_suite(text)}"


def _ready(config: RunConfig, plan: Blueprint | None, region: Region | None, found: Lengths | None, out: Path) -> str:
    """Return what the run will take, as far as that can be told."""
    if plan is None or region is None or found is None:
        return "time, memory and disk are not forecast of a built-in model or built-in data"
    from striate.pipeline.checking.run_forecast import forecast_run

    return str(forecast_run(config, plan, region, found, out))


def _suite(text: str) -> str:
    from striate.harness.suites import parse_suite, require

    suite = parse_suite(text)
    return f"{text}: {suite.harness} {require(suite)}"


def _check_base(config: RunConfig, plan: Blueprint | None) -> None:
    """Raise if scorers compare with an untuned checkpoint that is not there, or has another depth."""
    from striate.scorers import SCORERS
    from striate.scorers.base import check_base_named
    from striate.scorers.runners.weights import check_depths

    base = locate_base(config, Silent())
    scorers = [SCORERS.get(name) for name in config.analyze.scorers]
    check_base_named(scorers, base)
    if plan and base and any(scorer.needs_base for scorer in scorers):
        check_depths(num_layers_of(base), plan.anatomy.num_layers)


def _removal(config: RunConfig, region: Region | None) -> str:
    """Return how many layers go, of how many where that is known."""
    remove, ranked = config.prune.remove, f"ranked by {config.prune.scorer}"
    how = "refit where layers allow it" if config.prune.compensate == "auto" else config.prune.compensate
    ranked += "" if how == "none" else f", compensated by {how}"
    ranked += f", {config.prune.when} tuning"
    most = "at most " if config.prune.until else ""
    if region is None:
        return f"{most}{remove}{' of the' if isinstance(remove, str) else ''} layers, {ranked}"
    return f"{most}{layers_to_remove(remove, region.num_layers)} of {region.num_layers} layers, {ranked}"


def _image_tokens(config: RunConfig, out: Path) -> str:
    """Return where image tokens are computed, and what that may cost the start model, or did in the run in `out`."""
    section = config.train
    also = "" if section.image_also == "none" else f" and in {section.image_also}"
    told = f"image tokens are computed in the region{also}"
    if section.image_check is None:
        return f"{told}; what that costs the start model is not measured (train.image_check is null)"
    record = read_if_there(out / "train.json", TrainRecord)
    if record and record.image_check:
        found = record.image_check
        return f"{told}; in {out} the start model's loss was {found.ruled:.3f} so, {found.whole:.3f} in whole layers"
    return (
        f"{told}; before training the start model's loss may rise by {section.image_check:g} nats a token at most"
        " (train.image_check)"
    )


def _healing(config: RunConfig) -> str:
    """Return for how long healing trains what, towards what."""
    heal = config.heal
    long = plural(heal.steps, "step") if heal.steps else f"{100 * (heal.share or 0):.3g}% of the training data"
    how = "full weights" if heal.how(config.train) == "full" else "LoRA"
    parts = [f"{getattr(heal, name):g} {name}" for name in ("ce", "kl", "hidden") if getattr(heal, name)]
    return f"{long}, {how} of {heal.region}, {100 * heal.text:.3g}% without a picture, by {' + '.join(parts)}"


def _scorers(config: RunConfig) -> str:
    from striate.scorers import SCORERS

    return ", ".join(SCORERS.get(name).name for name in config.analyze.scorers)


def _quantization(device: str) -> str:
    from striate.models.io.devices import resolve_device
    from striate.models.io.quantized import check_quantization

    place = resolve_device(device)
    check_quantization(place)
    return f"bitsandbytes on {place}"


def _optimizer(config: RunConfig) -> str:
    from striate.models.io.devices import resolve_device
    from striate.training.optimizers import check_optimizer

    place = resolve_device(config.machine.device)
    check_optimizer(config.train, place)
    return f"{config.train.optimizer} on {place}"
