"""Scores of tasks whose answers are chosen from a few, and of those whose answers are written, apart. No torch.

A model that has lost much still picks the right one of four choices a quarter of the time, and can be close to whole
where it only picks: choices alone flatter it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from striate.artifacts import AnswerForm, CurveScore, EvalRecord, Prediction
from striate.tasks.metrics import METRICS
from striate.tasks.metrics.choices.choice import CHOICE
from striate.tasks.metrics.choices.choice_logprob import CHOICE_LOGPROB
from striate.tasks.metrics.choices.letter import LETTER
from striate.tasks.metrics.choices.yes_no import MME, YES_NO
from striate.tasks.scoring.compare import KINDS, MACRO, MACRO_METRIC, TaskKey, by_task, compare_tasks, in_scope

Result = tuple[EvalRecord, Sequence[Prediction]]
OF_CHOICE = frozenset(metric.name for metric in (CHOICE, CHOICE_LOGPROB, LETTER, YES_NO, MME))


def scores_by_form(
    result: Result, tuned: Result | None, start: Result | None, repetitions: int, seed: int
) -> tuple[CurveScore, ...]:
    """Return the mean score of each kind: of all its tasks, then of those of either form of answers.

    Perplexity is no share of right answers: each of its tasks has a row of its own, in nats a token.

    Args:
        result: the model's record and predictions.
        tuned: those of the tuned model, to compare with; None compares with none.
        start: those of the start, likewise.
        repetitions: draws of a bootstrap.
        seed: of the draws.

    Raises:
        ArtifactError: two models did not answer the same items.
    """
    means = {(row.pack, row.task, row.metric, row.kind): row for row in result[0].tasks}
    keys = by_task(result[1])
    rows: list[tuple[AnswerForm, list[TaskKey], TaskKey]] = []
    for kind in KINDS:
        for answers, chosen in _forms(in_scope(keys, (MACRO, kind))).items():
            name = kind if answers == "all" else f"{kind}, {answers}"
            rows.append((answers, chosen, (MACRO, name, MACRO_METRIC, kind)))
    rows += [("perplexity", [key], key) for key in keys if not METRICS.get(key[2]).higher_is_better]
    return tuple(
        CurveScore(
            kind=row[3],
            answers=answers,
            n=sum(means[key].n for key in chosen),
            tasks=len(chosen),
            score=sum(means[key].score for key in chosen) / len(chosen),
            tuned=compare_tasks(tuned, result, chosen, row, repetitions, seed) if tuned else None,
            start=compare_tasks(start, result, chosen, row, repetitions, seed) if start else None,
        )
        for answers, chosen, row in rows
    )


def _forms(tasks: Collection[TaskKey]) -> dict[AnswerForm, list[TaskKey]]:
    """Return the tasks of one kind: all of them, and those of either form; nothing that would be empty."""
    forms: dict[AnswerForm, list[TaskKey]] = {
        "all": list(tasks),
        "choice": [key for key in tasks if key[2] in OF_CHOICE],
        "written": [key for key in tasks if key[2] not in OF_CHOICE],
    }
    return {answers: chosen for answers, chosen in forms.items() if chosen}
