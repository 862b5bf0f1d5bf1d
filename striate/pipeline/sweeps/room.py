"""How many runs of a sweep fit on one device side by side, by the forecast of their training's memory."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING

from striate.config import TrainSection
from striate.data.pictures import PictureLimits
from striate.errors import StriateError
from striate.pipeline.sweeps.plan import Plan, Planned
from striate.progress import Progress

if TYPE_CHECKING:
    from striate.data.checks.length_check import Lengths

# Evaluation and what the allocator keeps come on top of what is forecast of training.
_MARGIN, _MOST = 1.5, 8


def runs_side_by_side(plan: Plan, out: Path, progress: Progress) -> int:
    """Return how many runs of the plan fit on one device: one on a CPU, and where a forecast can't be made."""
    from striate.models.io.devices import resolve_device

    if plan.sweep.per_device:
        return plan.sweep.per_device
    if resolve_device(plan.runs[0].config.machine.device).type == "cpu":
        return 1
    try:
        known: dict[Hashable, Lengths] = {}
        shares = [_share(run, out, progress, known) for run in _kinds(plan.runs)]
    except StriateError as error:
        progress.say(f"sweep: one run a device, as memory can't be forecast: {error.given}")
        return 1
    fits = max(1, min(_MOST, int(1 / (_MARGIN * max(shares)))))
    progress.say(f"sweep: {fits} runs fit on a device by forecast ({100 * max(shares):.0f}% of its memory each)")
    return fits


def _kinds(runs: tuple[Planned, ...]) -> list[Planned]:
    """Return a run of each kind that takes other memory."""
    return list({_kind(run.config.select.region, run.config.train): run for run in runs}.values())


def _kind(region: str, train: TrainSection) -> Hashable:
    return region, train.method, train.image_tokens, train.image_also, bool(train.image_whole_every)


def _share(run: Planned, out: Path, progress: Progress, known: dict[Hashable, Lengths]) -> float:
    """Return the share of a device's memory that a run's training takes; `known` keeps what was read of the data."""
    from striate.pipeline.checking.model_ahead import model_plan
    from striate.pipeline.checking.run_forecast import forecast_run
    from striate.selectors.spec.grammar import resolve
    from striate.selectors.spec.required_scores import parse_unscored

    blueprint, told = model_plan(run.config)
    if blueprint is None:
        raise StriateError(told)
    spec = parse_unscored("select.region", run.config.select.region)
    region = resolve(spec, blueprint.anatomy.num_layers)
    config = run.config
    besides = config.analyze, config.prune, config.heal, config.machine, config.train.batch_size
    read = config.model, config.data, config.train.max_length, config.seed, besides
    if read not in known:
        known[read] = _lengths(run, progress)
    found = forecast_run(config, blueprint, region, known[read], out)
    return found.memory / found.memory_there


def _lengths(run: Planned, progress: Progress) -> Lengths:
    from striate.data.reading import read_many
    from striate.pipeline.checking.data_ahead import check_lengths
    from striate.pipeline.run_inputs import locate_inputs

    inputs = locate_inputs(run.config, progress)
    samples = read_many(inputs.train, run.config.data.max_train_samples, run.config.seed, inputs.options)
    return check_lengths(run.config, PictureLimits.of(run.config.machine), samples)[0]
