"""Which learning rates are tried, for how many steps, and which is best."""

from __future__ import annotations

import pytest

from striate.artifacts import RateTrial
from striate.errors import ConfigError
from striate.pipeline.trials.rate_choice import Pace, best_rate, rates_around


def trial(lr: float, loss: float | None, right: float = 0.0) -> RateTrial:
    measured = {} if loss is None else {"loss": loss, "exact_match": right}
    return RateTrial(lr=lr, measured=measured, last_loss=loss, diverged="" if loss else "it did", seconds=1.0)


def test_rates_lie_a_factor_apart_around_the_configured_one() -> None:
    assert rates_around(2e-4) == (5e-5, 1e-4, 2e-4, 4e-4, 8e-4)
    assert rates_around(3e-5, 3, 10.0) == (3e-6, 3e-5, 3e-4)


def test_the_budget_is_shared_alike() -> None:
    pace = Pace(step=2.0, besides=10.0)
    assert pace.steps_within(600, 5, 860) == 55
    assert pace.steps_within(600, 5, 40) == 40
    assert pace.steps_within(30, 1, 10) == 10
    with pytest.raises(ConfigError) as caught:
        pace.steps_within(120, 5, 860)
    assert str(caught.value).splitlines() == [
        "2 minutes are left for 5 rates, of which each takes 10 s and 2 s a step",
        "  allowed: 10 steps a rate or more: 2.5 minutes or more",
        "  next:    give more --minutes or fewer --rates, or lower train.batch_size",
    ]
    with pytest.raises(ConfigError, match=r"^0 minutes are left"):
        pace.steps_within(-5, 5, 860)


@pytest.mark.parametrize(
    ("trials", "metric", "expected"),
    [
        ([(1, 3.0, 0.1), (2, 2.0, 0.3), (4, 2.5, 0.6)], "loss", (2, False)),
        ([(1, 3.0, 0.1), (2, 2.0, 0.3), (4, 2.5, 0.6)], "exact_match", (4, True)),
        ([(4, 2.5, 0.6), (8, None, 0.0), (2, 2.0, 0.3)], "exact_match", (4, False)),
        ([(1, 3.0, 0.0), (2, 2.0, 0.0), (4, 2.5, 0.0)], "exact_match", (2, False)),
        ([(1, 1.0, 0.0), (2, 2.0, 0.0)], "loss", (1, True)),
        ([(1, None, 0.0), (2, None, 0.0)], "loss", (None, False)),
    ],
)
def test_the_best_rate(trials: list[tuple[float, float | None, float]], metric: str, expected: object) -> None:
    assert best_rate([trial(*one) for one in trials], metric) == expected
