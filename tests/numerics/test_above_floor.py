"""Retention above the floor: by hand, beside Fieller's formula and plain retention, and on samples of a known truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from striate.tasks.scoring.above_floor import NO_SIGHT, Estimate, above_floor, ratio_interval
from striate.tasks.scoring.compare import compare_pairs
from striate.tasks.scoring.paired_scores import Paired

Scores = np.ndarray[Any, np.dtype[np.float64]]


def right(*runs: int) -> Scores:
    """Runs of right and wrong answers, by turns."""
    return np.concatenate([np.full(run, float(place % 2 == 0)) for place, run in enumerate(runs)])


def test_what_is_kept_above_the_floor_by_hand() -> None:
    pair = Paired.of(right(80, 20), right(75, 25))
    found = above_floor([pair], [right(30, 70)])
    assert (found.floor, found.kept) == (pytest.approx(0.3), pytest.approx(100 * 45 / 50))
    assert found.interval.low is not None
    assert found.interval.high is not None
    assert 70 < found.interval.low < 90 < found.interval.high < 100
    # Two tasks of one weight, whatever their sizes.
    other = Paired.of(right(20, 20), right(20, 20))
    both = above_floor([pair, other], [right(30, 70), right(10, 30)])
    means = ((0.75 + 0.5) / 2, (0.8 + 0.5) / 2, (0.3 + 0.25) / 2)
    assert both.kept == pytest.approx(100 * (means[0] - means[2]) / (means[1] - means[2]))


def test_with_a_floor_of_nought_it_is_plain_retention() -> None:
    pair = Paired.of(right(160, 40), right(150, 10, 10, 30))
    found = above_floor([pair], [right(0, 200)])
    plain = compare_pairs(("other", "baseline"), ("p", "t", "exact", "visual"), [pair], 100, 0)
    assert found.kept == pytest.approx(plain.retention)
    assert (found.interval.low, found.interval.high) == pytest.approx(
        (plain.retention_low, plain.retention_high), abs=1
    )


def test_where_no_answer_changed_the_interval_still_has_a_width() -> None:
    same = right(70, 30)
    found = above_floor([Paired.of(same, same)], [right(30, 70)])
    assert found.kept == 100
    assert found.interval.low is not None
    assert found.interval.high is not None
    # Up to 3.7 of 100 answers may change, of 40 that the pictures give.
    assert found.interval.high - 100 == pytest.approx(100 * 0.037 / 0.4, rel=0.15)
    assert 100 - found.interval.low == pytest.approx(100 * 0.037 / 0.4, rel=0.15)


def test_scores_beyond_1_are_brought_within_and_told_as_they_were() -> None:
    pair, floor = Paired.of(right(80, 20), right(75, 25)), right(30, 70)
    tall = Paired.of(2 * pair.baseline, 2 * pair.other, None, pair.pictures)
    plain, doubled = above_floor([pair], [floor]), above_floor([tall], [2 * floor])
    assert doubled.floor == pytest.approx(2 * plain.floor)
    assert (doubled.kept, doubled.interval) == (plain.kept, plain.interval)


def test_without_a_clear_gain_from_pictures_there_is_no_figure() -> None:
    found = above_floor([Paired.of(right(50, 50), right(60, 40))], [right(0, 2, 48, 50)])
    assert (found.floor, found.kept, found.interval.why_none) == (pytest.approx(0.48), None, NO_SIGHT)
    few = above_floor([Paired.of(right(3), right(3))], [right(0, 3)])
    assert (few.kept, few.interval.why_none) == (None, "3 independent pictures are too few")


@pytest.mark.parametrize("correlation", [-0.6, 0.0, 0.8])
@pytest.mark.parametrize("over", [-0.3, 0.02, 0.4])
def test_of_normal_means_the_ratios_interval_is_fiellers(over: float, correlation: float) -> None:
    reach, errors = 1.96, (0.05, 0.08)
    under = 0.5
    ends = [Estimate(mean, mean - reach * e, mean + reach * e) for mean, e in zip((over, under), errors, strict=True)]
    # The roots of (over - r under)^2 = reach^2 (e1^2 - 2 r rho e1 e2 + r^2 e2^2).
    square = under**2 - (reach * errors[1]) ** 2
    middle = over * under - reach**2 * correlation * errors[0] * errors[1]
    constant = over**2 - (reach * errors[0]) ** 2
    root = math.sqrt(middle**2 - square * constant)
    expected = ((middle - root) / square, (middle + root) / square)
    assert ratio_interval(*ends, correlation) == pytest.approx(expected)


def test_the_interval_holds_the_truth_in_95_of_100_samples() -> None:
    draws, inside = np.random.default_rng(5), 0
    # Of a model that answers 75% of what the other one answers right, and 20% of the rest, the floor being 40%.
    seen, floor, truth = 0.7, 0.4, 100 * (0.75 * 0.7 + 0.2 * 0.3 - 0.4) / (0.7 - 0.4)
    for _ in range(300):
        base, chance = (draws.random(150) < seen) * 1.0, draws.random(150)
        other = np.where(base == 1, chance < 0.75, chance < 0.2) * 1.0
        found = above_floor([Paired.of(base, other)], [(draws.random(150) < floor) * 1.0]).interval
        inside += bool(found.low is not None and found.high is not None and found.low <= truth <= found.high)
    assert 0.92 <= inside / 300 <= 0.985
