"""The region of a run before there are scores: so much that what could not follow is refused."""

from __future__ import annotations

from collections.abc import Collection

from striate.artifacts import LayerScores, Region, Scores
from striate.config import RunConfig
from striate.errors import SpecError
from striate.pipeline.preflight import check_region
from striate.printable import shown
from striate.pruning.removal import removal_of
from striate.selectors.spec.grammar import Spec, resolve


def check_region_ahead(config: RunConfig, spec: Spec, num_layers: int) -> Region:
    """Return the region of `spec`, or one of its size where scores will choose its layers, if a run could use it.

    Raises:
        StriateError: the SPEC does not fit the model, or training, pruning or healing could not follow it.
    """
    if not spec.needs_scores:
        region = resolve(spec, num_layers)
        check_region(config, region)
        return region
    from striate.stages.prune import check_removal
    from striate.training.lisa import check_lisa

    region = resolve(spec, num_layers, _equal_scores(spec, num_layers))
    check_lisa(region, config.train.resample)
    check_removal(region, removal_of(config.prune, region))
    return region


def check_score_tasks(spec: Spec, tasks: Collection[str]) -> None:
    """Return if the calibration set has samples of every task that `spec` names; `tasks` are those it has.

    Raises:
        SpecError: it has not.
    """
    from striate.stages.analyze import NO_TASK

    there = sorted({task or NO_TASK for task in tasks})
    missing = [name.task for name in spec.score_names if name.task is not None and name.task not in there]
    if missing:
        raise SpecError(
            f"region {spec.text!r} needs scores of task {shown(missing[0])}, and no calibration sample is of that task",
            ", ".join(map(shown, there[:12])),
            "name one of these, add such samples to data.calibration, or raise analyze.samples",
        )


def _equal_scores(spec: Spec, num_layers: int) -> Scores:
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
