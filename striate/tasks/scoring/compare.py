"""Compute task scores, macro averages, and paired comparisons with a baseline. No torch."""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from striate.artifacts import Difference, EvalRecord, Kind, Prediction, TaskScore
from striate.errors import ArtifactError
from striate.tasks.metrics import METRICS
from striate.tasks.packs.items import Item
from striate.tasks.scoring.above_floor import above_floor
from striate.tasks.scoring.bootstrap import bootstrap_t
from striate.tasks.scoring.intervals import (
    Interval,
    changed_answers,
    difference_interval,
    mcnemar,
    resolvable_difference,
    retention_interval,
    share_interval,
)
from striate.tasks.scoring.paired_scores import Floats, Paired
from striate.tasks.scoring.picture_sample import PictureSample

TaskKey = tuple[str, str, str, Kind]
MACRO = "*"
MACRO_METRIC = "mean"
MOST_NATS = 700.0
KINDS: tuple[Kind, ...] = ("visual", "text")


def task_key(item: Prediction | Item) -> TaskKey:
    """Return what an item or a prediction counts for: pack, task, metric, `visual` with an image or `text` without."""
    return (item.pack, item.task, item.metric, "visual" if item.image is not None else "text")


def in_scope(keys: Iterable[TaskKey], scope: tuple[str, str]) -> list[TaskKey]:
    """Return the tasks of one scope: of a kind (`*`, `visual`), of a pack (PACK, `*`), or one task by its name.

    Perplexity is no share of right answers, so it counts alone or not at all.
    """
    pack, task = scope
    chosen = [key for key in keys if (key[3] == task if pack == MACRO else key[0] == pack and task in (MACRO, key[1]))]
    if len(chosen) > 1 or pack == MACRO:
        chosen = [key for key in chosen if METRICS.get(key[2]).higher_is_better]
    return chosen


def by_task(predictions: Iterable[Prediction]) -> dict[TaskKey, list[Prediction]]:
    """Return the predictions of each task, tasks in order of first appearance."""
    groups: dict[TaskKey, list[Prediction]] = {}
    for prediction in predictions:
        groups.setdefault(task_key(prediction), []).append(prediction)
    return groups


def task_scores(predictions: Sequence[Prediction], repetitions: int, seed: int) -> list[TaskScore]:
    """Return each task's weighted mean score with its 95% interval."""
    return [_task_score(key, group, repetitions, seed) for key, group in by_task(predictions).items()]


def macro_average(scores: Sequence[TaskScore], kind: Kind) -> float | None:
    """Return the unweighted mean of the accuracy-like task scores of `kind`; None if there is none.

    Perplexity is left out: it is no share of right answers.
    """
    values = [score.score for score in scores if score.kind == kind and METRICS.get(score.metric).higher_is_better]
    return float(np.mean(values)) if values else None


def macro_intervals(predictions: Sequence[Prediction]) -> dict[Kind, tuple[float, float]]:
    """Return the 95% interval of each kind's `macro_average`, over pictures of all tasks, where one can hold."""
    found = {}
    tasks = by_task(predictions)
    for kind in KINDS:
        pairs = [_alone(tasks[key]) for key in in_scope(tasks, (MACRO, kind))]
        if pairs:
            sample, top = _sample(pairs)
            interval = share_interval(sample).scaled(top)
            if interval.low is not None and interval.high is not None:
                found[kind] = interval.low, interval.high
    return found


def compare_predictions(
    baseline: tuple[EvalRecord, Sequence[Prediction]],
    other: tuple[EvalRecord, Sequence[Prediction]],
    repetitions: int,
    seed: int,
    floor: Sequence[Prediction] = (),
) -> list[Difference]:
    """Return one row a task and one macro row a kind (pack `*`, task `visual` or `text`): `other` against `baseline`.

    Differences are other - baseline, paired by item. Retention is the ratio of the two scores in %; of the two macro
    averages in a macro row, whose `n` counts items. For perplexity, in nats a token, a positive difference is worse,
    and retention is `100 * exp(baseline - other)`; it has rows of its own and is in no macro row.

    Items that share a picture count as one observation, in all tasks together, since they are right and wrong together
    (Cameron, Gelbach and Miller 2008, Review of Economics and Statistics 90, 414-427): intervals are over pictures.
    With a `floor`, the baseline's answers without their pictures, visual rows tell what is kept above it.

    Raises:
        ArtifactError: the two, or the baseline with and without pictures, did not answer the same items.
    """
    pairs, floors = _paired_tasks(baseline, other), _floors(baseline, floor)
    labels = (other[0].label, baseline[0].label)

    def compared(key: TaskKey, tasks: Sequence[TaskKey]) -> Difference:
        blind = [floors[task] for task in tasks if task in floors]
        return compare_pairs(labels, key, [pairs[task] for task in tasks], repetitions, seed, blind)

    rows = [compared(key, [key]) for key in pairs]
    for kind in KINDS:
        if chosen := in_scope(pairs, (MACRO, kind)):
            rows.append(compared((MACRO, kind, MACRO_METRIC, kind), chosen))
    return rows


def compare_scope(
    baseline: tuple[EvalRecord, Sequence[Prediction]],
    other: tuple[EvalRecord, Sequence[Prediction]],
    scope: tuple[str, str],
    repetitions: int,
    seed: int,
    floor: Sequence[Prediction] = (),
) -> Difference | None:
    """Return the row of one task, or the macro row of a kind (`*`, `visual`) or of a pack (PACK, `*`); None if empty.

    A row has a retention above the `floor`, as in `compare_predictions`, where all of its tasks were asked for it.

    Raises:
        ArtifactError: as `compare_predictions`.
    """
    pack, task = scope
    pairs, floors = _paired_tasks(baseline, other), _floors(baseline, floor)
    chosen = {key: pairs[key] for key in in_scope(pairs, scope)}
    if not chosen:
        return None
    labels, first = (other[0].label, baseline[0].label), next(iter(chosen))
    key = first if len(chosen) == 1 and pack != MACRO else (pack, task, MACRO_METRIC, first[3])
    blind = [floors[task] for task in chosen if task in floors]
    return compare_pairs(labels, key, list(chosen.values()), repetitions, seed, blind)


def compare_tasks(
    baseline: tuple[EvalRecord, Sequence[Prediction]],
    other: tuple[EvalRecord, Sequence[Prediction]],
    tasks: Collection[TaskKey],
    row: TaskKey,
    repetitions: int,
    seed: int,
) -> Difference:
    """Return the comparison over `tasks`, under the names of `row`; one task of perplexity is a row of its own.

    Raises:
        ArtifactError: the two did not answer the same items.
    """
    pairs = [pair for key, pair in _paired_tasks(baseline, other).items() if key in tasks]
    return compare_pairs((other[0].label, baseline[0].label), row, pairs, repetitions, seed)


def _task_score(key: TaskKey, group: Sequence[Prediction], repetitions: int, seed: int) -> TaskScore:
    pack, task, metric, kind = key
    pair, kind_of_score = _alone(group), METRICS.get(metric)
    sample, top = _sample([pair])
    found = (
        share_interval(sample).scaled(top) if kind_of_score.higher_is_better else nats_interval(pair, repetitions, seed)
    )
    return TaskScore(
        pack=pack,
        task=task,
        metric=metric,
        kind=kind,
        n=len(group),
        score=float(pair.means[1]),
        low=found.low,
        high=found.high,
        no_interval=found.why_none,
        unparsed=sum(item.unparsed for item in group),
        clusters=sample.pictures,
        details=kind_of_score.details(group),
    )


def _alone(group: Sequence[Prediction]) -> Paired:
    """Return one model's scores, in the place of both."""
    scores = [item.score for item in group]
    return Paired.of(scores, scores, [item.weight for item in group], [item.pictures for item in group])


def _sample(pairs: Sequence[Paired]) -> tuple[PictureSample, float]:
    """Return the sample of scores between 0 and 1, and what they were divided by: 1 unless a metric goes further."""
    top = max(1.0, *(float(max(pair.baseline.max(), pair.other.max())) for pair in pairs))
    within = [Paired(pair.baseline / top, pair.other / top, pair.weights, pair.pictures) for pair in pairs]
    return PictureSample.of(within), top


def nats_interval(pair: Paired, repetitions: int, seed: int, *, paired: bool = False) -> Interval:
    """Return the interval of the mean of scores without bounds, or of their difference from the baseline's."""
    values = pair.other - pair.baseline if paired else pair.other
    return bootstrap_t(values, pair.weights, pair.pictures, repetitions, seed)


def _paired_tasks(
    baseline: tuple[EvalRecord, Sequence[Prediction]], other: tuple[EvalRecord, Sequence[Prediction]]
) -> dict[TaskKey, Paired]:
    baseline_label, label = baseline[0].label, other[0].label
    others = {(*task_key(item), item.id): item for item in other[1]}
    missing = [item.id for item in baseline[1] if (*task_key(item), item.id) not in others]
    if missing or len(others) != len(baseline[1]):
        example = f"; {missing[0]!r} is only in {baseline_label!r}" if missing else ""
        counts = f"{len(others)} and {len(baseline[1])}"
        raise ArtifactError(
            f"{label!r} and {baseline_label!r} did not answer the same items: {counts}{example}",
            "two evaluations with the same packs and the same limit",
            "run `striate evaluate` again for both",
        )
    return {
        key: Paired.of(
            [item.score for item in group],
            [others[*key, item.id].score for item in group],
            [item.weight for item in group],
            [item.pictures for item in group],
        )
        for key, group in by_task(baseline[1]).items()
    }


def _floors(baseline: tuple[EvalRecord, Sequence[Prediction]], floor: Sequence[Prediction]) -> dict[TaskKey, Floats]:
    """Return the baseline's scores without pictures, of each task that was asked so, in the order of its answers."""
    scores = {(*task_key(item), item.id): item.score for item in floor}
    asked = {key: group for key, group in by_task(baseline[1]).items() if key in by_task(floor)}
    items = [(*key, item.id) for key, group in asked.items() for item in group]
    if len(items) != len(scores) or not scores.keys() >= {*items}:
        raise ArtifactError(
            f"{baseline[0].label!r} did not answer the same items with and without their pictures",
            "two evaluations with the same packs and the same limit",
            "run `striate evaluate --overwrite`",
        )
    return {key: np.array([scores[*key, item.id] for item in group]) for key, group in asked.items()}


def compare_pairs(
    labels: tuple[str, str],
    key: TaskKey,
    pairs: Sequence[Paired],
    repetitions: int,
    seed: int,
    floors: Sequence[Floats] = (),
) -> Difference:
    """Return the comparison of one task, or of the macro average of several.

    Args:
        labels: of the model, and of the baseline.
        key: pack, task, metric and kind of the row.
        pairs: both models' scores, one entry a task.
        repetitions: draws of the bootstrap, of perplexity's interval.
        seed: of the draws.
        floors: the baseline's scores without pictures, one entry a task, where all of them were asked so.
    """
    pack, task, metric, kind = key
    sample, top = _sample(pairs)
    baseline, score = (float(mean) * top for mean in sample.means)
    if metric == MACRO_METRIC or METRICS.get(metric).higher_is_better:
        found, changed = difference_interval(sample), changed_answers(pairs)
        # Where nothing changed, no error is seen: the interval's own end is what can be told.
        resolvable = None if found.high is None else resolvable_difference(sample) or found.high
        difference, kept = found.scaled(top), retention_interval(sample)
        retention = 100 * score / baseline if baseline else None
    else:
        difference, changed, resolvable = nats_interval(pairs[0], repetitions, seed, paired=True), None, None
        kept, retention = _likelihood_kept(difference), 100 * math.exp(min(baseline - score, MOST_NATS))
    return Difference(
        label=labels[0],
        baseline=labels[1],
        pack=pack,
        task=task,
        kind=kind,
        metric=metric,
        n=sum(len(pair.baseline) for pair in pairs),
        baseline_score=baseline,
        score=score,
        difference=score - baseline,
        low=difference.low,
        high=difference.high,
        no_interval=difference.why_none or kept.why_none,
        retention=retention,
        retention_low=kept.low,
        retention_high=kept.high,
        clusters=sample.pictures,
        right_to_wrong=changed[0] if changed else None,
        wrong_to_right=changed[1] if changed else None,
        mcnemar_p=mcnemar(*changed) if changed else None,
        resolvable=None if resolvable is None else resolvable * top,
        **(_above_floor(pairs, floors) if len(floors) == len(pairs) else {}),
    )


def _above_floor(pairs: Sequence[Paired], floors: Sequence[Floats]) -> dict[str, Any]:
    found = above_floor(pairs, floors)
    return {
        "floor": found.floor,
        "above_floor": found.kept,
        "above_floor_low": found.interval.low,
        "above_floor_high": found.interval.high,
        "no_above_floor": found.interval.why_none,
    }


def _likelihood_kept(nats: Interval) -> Interval:
    """Return the interval of 100 * exp(baseline - other), in %, from that of the difference in nats a token."""
    if nats.low is None or nats.high is None:
        return nats
    low, high = (100 * math.exp(min(-end, MOST_NATS)) for end in (nats.high, nats.low))
    return Interval(low, high)
