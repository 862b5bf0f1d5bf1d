"""The region of a run before there are scores: so much that what could not follow is refused."""

from __future__ import annotations

from collections.abc import Collection

from striate.artifacts import LayerScores, Region, Scores
from striate.config import RunConfig
from striate.errors import SpecError
from striate.pipeline.preflight import check_region
from striate.printable import shown
from striate.pruning.removal import removal_of
from striate.selectors.spec.grammar import Spec, parse_spec, resolve
from striate.selectors.spec.required_scores import IMAGE_ALSO
from striate.training.image_layers import check_beside


def check_region_ahead(config: RunConfig, spec: Spec, num_layers: int) -> Region:
    """Return the region of `spec`, or one of its size where scores will choose its layers, if a run could use it.

    Raises:
        StriateError: the SPEC does not fit the model, or training, pruning or healing could not follow it.
    """
    if not spec.needs_scores:
        region = resolve(spec, num_layers)
        check_region(_with_any_layers(config, region), region)
        return region
    from striate.stages.prune import check_removal
    from striate.training.lisa import check_lisa

    region = resolve(spec, num_layers, equal_scores(spec, num_layers))
    check_lisa(region, config.train.resample)
    check_removal(region, removal_of(config.prune, region))
    _with_any_layers(config, region)
    return region


def also_computing(config: RunConfig, num_layers: int) -> int | None:
    """Return how many layers `image_also` names where it or the region follows from scores; else None."""
    also = parse_spec(config.train.image_also)
    return _count(also, num_layers) if also.needs_scores or parse_spec(config.select.region).needs_scores else None


def _with_any_layers(config: RunConfig, region: Region) -> RunConfig:
    """Return the config with as many layers beside the region that compute image tokens as scores will choose at most.

    Raises:
        SpecError: whichever they will be, they change nothing, or are all layers.
    """
    also, outside = parse_spec(config.train.image_also), region.outside
    if not also.needs_scores:
        return config
    count = _count(also, region.num_layers)
    named = outside if count == region.num_layers else outside[: max(1, min(count, len(outside) - 1))]
    check_beside(also.text, named, region)
    train = config.train.model_copy(update={IMAGE_ALSO: f"ids:{','.join(map(str, named))}"})
    return config.model_copy(update={"train": train})


def _count(spec: Spec, num_layers: int) -> int:
    """Return how many layers a SPEC chooses, whichever they are."""
    return len(resolve(spec, num_layers, equal_scores(spec, num_layers)).layers)


def check_score_tasks(spec: Spec, tasks: Collection[str], setting: str = "region") -> None:
    """Return if the calibration set has samples of every task that `spec` names; `tasks` are those it has.

    Raises:
        SpecError: it has not.
    """
    from striate.stages.analyze import NO_TASK

    there = sorted({task or NO_TASK for task in tasks})
    missing = [name.task for name in spec.score_names if name.task is not None and name.task not in there]
    if missing:
        raise SpecError(
            f"{setting} {spec.text!r} needs scores of task {shown(missing[0])},"
            " and no calibration sample is of that task",
            ", ".join(map(shown, there[:12])),
            "name one of these, add such samples to data.calibration, or raise analyze.samples",
        )


def equal_scores(spec: Spec, num_layers: int) -> Scores:
    """Return scores that are the same for all layers: which of them a SPEC then chooses means nothing."""
    from striate.scorers import SCORERS
    from striate.stages.analyze import NO_TASK

    zeros = (0.0,) * num_layers
    entries = tuple(
        LayerScores(
            scorer=name,
            values=zeros,
            low=(),
            high=(),
            samples=0,
            spans=(zeros,) * num_layers if SCORERS.get(name).spans else (),
        )
        for name in sorted({name.scorer for name in spec.score_names})
    )
    tasks = sorted({name.task or NO_TASK for name in spec.score_names})
    return Scores(num_layers=num_layers, samples=0, scorers=entries, tasks=dict.fromkeys(tasks, entries))
