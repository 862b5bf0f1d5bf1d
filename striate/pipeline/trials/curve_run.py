"""The curve of a run: quality, size and speed at every number of layers that is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from striate.artifacts import Curve, CurvePoint, EvalRecord, Prediction, Region, TrialSpeed, write_document
from striate.config import RunConfig
from striate.errors import ConfigError
from striate.pipeline.trials.prune_trials import PruneTrials, label_of
from striate.pruning.curve_csv import curve_csv
from striate.pruning.recommendation import recommend
from striate.storage.atomic import write_text
from striate.tasks.scoring.answer_forms import scores_by_form
from striate.tasks.scoring.intervals import METHOD

Result = tuple[EvalRecord, Sequence[Prediction]]
CURVE_FILE, TABLE_FILE = "curve.json", "curve.csv"


def references(config: RunConfig) -> list[str]:
    """Return the models that the points of a curve are held against: the start where it is evaluated, and the tuned."""
    return [*(("start",) if "start" in config.evaluate.models else ()), "tuned"]


def check_curve(config: RunConfig, region: Region, counts: Sequence[int]) -> None:
    """Check that a run can have a curve at `counts`: before anything is computed.

    Raises:
        ConfigError: more layers than lie outside the region, or no test packs.
    """
    from striate.stages.prune import check_removal

    check_removal(region, counts[-1])
    if config.prune.first:
        raise ConfigError(
            "a curve lets layers go from the tuned model, and prune.when is before",
            "prune.when after, or prune.remove 0",
            "try numbers of layers in another run, with prune.when=after",
        )
    if not config.evaluate.packs:
        raise ConfigError(
            "a curve asks every smaller model the test packs, and evaluate.packs is empty",
            "one pack or more",
            "name them with --set 'evaluate.packs=[FOLDER]'",
        )


def write_curve(trials: PruneTrials, spec: str, counts: Sequence[int], results: Mapping[str, Result]) -> None:
    """Make the curve, and write curve.json and curve.csv; arguments as of `make_curve`."""
    curve = make_curve(trials, spec, counts, results, (False, True) if trials.healing else (False,))
    write_text(trials.run.path / TABLE_FILE, curve_csv(curve))
    write_document(trials.run.path / CURVE_FILE, curve)


def make_curve(
    trials: PruneTrials, spec: str, counts: Sequence[int], results: Mapping[str, Result], forms: Sequence[bool]
) -> Curve:
    """Return the curve at `counts`, after making every trial that is not kept.

    Args:
        trials: of the run.
        spec: the counts as they were asked for.
        counts: how many layers go, in rising order; the first is 0.
        results: records and answers of the tuned model and, where it was evaluated, of the start, by label.
        forms: whether models are asked as they were cut (False), healed (True), or both.
    """
    # All of the ranking at once: it needs the whole model, which every trial takes apart.
    trials.removed(counts[-1])
    for number, count in enumerate(counts[1:], 1):
        trials.run.progress.say(f"curve: {label_of(count, False)}, {number} of {len(counts) - 1}")
        trials.make(count, forms, speed=True)
    points = [point for count in counts[1:] for healed in forms for point in [_point(trials, count, healed, results)]]
    whole = _whole(trials, points[0].count, results)
    num_layers, start = trials.region.num_layers, results.get("start")
    return Curve(
        spec=spec,
        region=trials.region,
        scorer=trials.config.prune.scorer,
        compensate=trials.config.prune.compensate,
        order=order_of([trials.removed(count) for count in range(counts[-1] + 1)]),
        packs=tuple(pack.name for pack in trials.packs()),
        points=(whole, *points),
        start=scores_by_form(start, None, None, *_draws(trials)) if start else (),
        interval=METHOD,
        recommendation=recommend(points, num_layers),
    )


def order_of(removed: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the layers in the order in which they go; nothing where one that is gone comes back.

    Args:
        removed: which layers are gone where 0, 1, 2, ... are.
    """
    added = [set(more) - set(fewer) for fewer, more in pairwise(removed)]
    return tuple(layer for layers in added for layer in layers) if all(len(layers) == 1 for layers in added) else ()


def _point(trials: PruneTrials, count: int, healed: bool, results: Mapping[str, Result]) -> CurvePoint:
    result, trial = trials.result(count, healed), trials.trial(count, healed)
    assert trial is not None
    return CurvePoint(
        count=count,
        removed=trial.removed,
        healed=healed,
        parameters=trial.record.parameters,
        bytes=trial.bytes,
        scores=scores_by_form(result, results["tuned"], results.get("start"), *_draws(trials)),
        speed=trials.speed(count),
    )


def _whole(trials: PruneTrials, count: int, results: Mapping[str, Result]) -> CurvePoint:
    """Return the point of the tuned model, whose size and speed are those beside the trial of `count`."""
    tuned, speed = results["tuned"], trials.speed(count)
    trial = next(trial for healed in (False, True) if (trial := trials.trial(count, healed)))
    return CurvePoint(
        count=0,
        removed=(),
        healed=False,
        parameters=tuned[0].parameters,
        bytes=trial.whole_bytes,
        scores=scores_by_form(tuned, None, results.get("start"), *_draws(trials)),
        speed=TrialSpeed(key=speed.key, whole=speed.whole, smaller=speed.whole) if speed else None,
    )


def _draws(trials: PruneTrials) -> tuple[int, int]:
    return trials.config.evaluate.bootstrap, trials.config.seed
