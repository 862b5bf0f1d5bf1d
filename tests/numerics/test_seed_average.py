"""Averages over seeds, against sums by hand."""

from __future__ import annotations

import pytest

from striate.artifacts import EvalRecord, Prediction
from striate.tasks.scoring.seed_average import seed_average


def answer(item: str, score: float, image: str | None = "a.png") -> Prediction:
    return Prediction(id=item, pack="p", task="t", metric="exact", question="", image=image, score=score)


def record() -> EvalRecord:
    facts = {"visual": 0.0, "text": None, "parameters": 1, "num_layers": 1, "seconds": 1.0, "peak_memory_gib": 0.0}
    return EvalRecord(label="tuned", model="m", tasks=(), **facts)  # type: ignore[arg-type]


def test_items_are_averaged_and_those_that_a_seed_lacks_are_left_out() -> None:
    first = [answer("1", 1.0), answer("2", 0.0), answer("3", 1.0)]
    second = [answer("2", 1.0), answer("1", 1.0)]
    found, means = seed_average([(record(), first), (record(), second)])
    assert [(one.id, one.score) for one in means] == [("1", 1.0), ("2", 0.5)]
    assert found.visual == pytest.approx(0.75)
    assert found.text is None
    assert [(task.n, task.score) for task in found.tasks] == [(2, pytest.approx(0.75))]


def test_one_seed_is_itself() -> None:
    found, means = seed_average([(record(), [answer("1", 0.25, None)])])
    assert (found.visual, found.text, means[0].score) == (None, 0.25, 0.25)
