"""Bootstrap intervals against closed forms, simulated data, and a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from striate.tasks import statistics
from striate.tasks.statistics import (
    Paired,
    bootstrap_interval,
    macro_replicates,
    mean_of,
    paired_difference,
    perplexity_retention,
    replicate_means,
    retention_interval,
)

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def test_the_spread_of_replicates_is_the_standard_error() -> None:
    scores = np.random.default_rng(1).normal(size=400)
    replicates = replicate_means(scores[:, None], None, 20_000, 0)[:, 0]
    assert replicates.mean() == pytest.approx(scores.mean(), abs=0.002)
    assert replicates.std() == pytest.approx(scores.std() / math.sqrt(400), rel=0.02)


def test_the_interval_of_a_large_sample_is_the_normal_one() -> None:
    scores = np.random.default_rng(2).random(900) < 0.3
    half = 1.96 * scores.std() / 30
    low, high = bootstrap_interval(scores, repetitions=20_000)
    assert low == pytest.approx(scores.mean() - half, abs=0.002)
    assert high == pytest.approx(scores.mean() + half, abs=0.002)


def test_replicates_equal_a_plain_loop() -> None:
    scores, weights = np.array([0.0, 1.0, 0.5]), np.array([1.0, 2.0, 3.0])
    drawn = np.random.default_rng(7).integers(3, size=(50, 3))
    expected = [np.average(scores[row], weights=weights[row]) for row in drawn]
    assert replicate_means(scores[:, None], weights, 50, 7)[:, 0] == pytest.approx(expected)


def test_replicates_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(3).random((40, 2))
    whole = replicate_means(scores, None, 100, 5)
    monkeypatch.setattr(statistics, "DRAWS_AT_ONCE", 40 * 7)
    assert replicate_means(scores, None, 100, 5) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_95_percent_intervals_cover_the_truth_about_95_percent_of_the_time(share: float) -> None:
    generator = np.random.default_rng(4)
    hits = 0
    for trial in range(400):
        low, high = bootstrap_interval(generator.random(150) < share, repetitions=400, seed=trial)
        hits += low <= share <= high
    assert 0.91 <= hits / 400 <= 0.985


def test_paired_intervals_cover_the_true_difference_and_are_narrower_than_unpaired_ones() -> None:
    generator = np.random.default_rng(5)
    hits, paired_width, plain_width = 0, 0.0, 0.0
    for trial in range(300):
        base = generator.random(120)
        other = base + generator.normal(0.1, 0.05, size=120)
        difference, low, high = paired_difference(base, other, repetitions=400, seed=trial)
        assert low <= difference <= high
        hits += low <= 0.1 <= high
        paired_width += high - low
        plain_width += np.subtract(*bootstrap_interval(other, repetitions=400, seed=trial)[::-1])
    assert 0.91 <= hits / 300 <= 0.985
    assert paired_width < plain_width / 3


def test_retention_of_a_constant_ratio_has_no_width() -> None:
    baseline = np.random.default_rng(6).random(50) + 0.1
    assert retention_interval(baseline, 0.9 * baseline) == pytest.approx((90, 90, 90))


def test_retention_intervals_cover_the_true_ratio() -> None:
    generator = np.random.default_rng(8)
    hits = 0
    for trial in range(300):
        baseline = generator.random(200) < 0.6
        other = np.where(generator.random(200) < 0.9, baseline, generator.random(200) < 0.3)
        _, low, high = retention_interval(baseline, other, repetitions=400, seed=trial)
        assert low is not None
        assert high is not None
        hits += low <= 100 * (0.9 * 0.6 + 0.1 * 0.3) / 0.6 <= high
    assert 0.91 <= hits / 300 <= 0.985


def test_there_is_no_retention_of_nothing() -> None:
    assert retention_interval([0, 0, 0], [1, 0, 1]) == (None, None, None)


def test_there_is_no_interval_when_the_baseline_may_well_be_nothing() -> None:
    # One right answer of 20 is missing from 36% of the samples.
    baseline = [1] + [0] * 19
    assert retention_interval(baseline, [1, 1] + [0] * 18) == (200.0, None, None)


def test_weights_count_as_repeated_items() -> None:
    difference, _, _ = paired_difference([0, 1], [1, 1], weights=[3, 1])
    assert difference == pytest.approx(0.75)
    assert mean_of([Paired.of([0, 1], [1, 1], [3, 1])]) == pytest.approx([0.25, 1.0])


def test_the_macro_average_weighs_tasks_alike() -> None:
    pairs = [Paired.of([0] * 9, [1] * 9), Paired.of([1], [1])]
    assert mean_of(pairs) == pytest.approx([0.5, 1.0])
    assert macro_replicates(pairs, 100, 0) == pytest.approx(np.tile([0.5, 1.0], (100, 1)))


def test_macro_replicates_draw_tasks_independently() -> None:
    scores = np.random.default_rng(9).normal(size=300)
    pair = Paired.of(scores, scores)
    replicates = macro_replicates([pair, pair], 20_000, 0)[:, 0]
    assert replicates.std() == pytest.approx(scores.std() / math.sqrt(300) / math.sqrt(2), rel=0.03)


def test_perplexity_retention_is_the_ratio_of_perplexities() -> None:
    means, replicates = np.array([math.log(10), math.log(20)]), np.log([[10.0, 20.0], [10.0, 20.0]])
    assert perplexity_retention(means, replicates) == pytest.approx((50, 50, 50))


def test_scores_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        paired_difference([1, 0], [1])


@settings(max_examples=40)
@given(SCORES)
def test_intervals_lie_within_the_scores(scores: list[float]) -> None:
    low, high = bootstrap_interval(scores, repetitions=200)
    assert min(scores) - 1e-12 <= low <= high <= max(scores) + 1e-12


@settings(max_examples=40)
@given(SCORES)
def test_a_model_against_itself(scores: list[float]) -> None:
    assert paired_difference(scores, scores, repetitions=200) == (0.0, 0.0, 0.0)
    retention, low, high = retention_interval(scores, scores, repetitions=200)
    assert retention is None or retention == pytest.approx(100)
    assert low is None or (low == pytest.approx(100) and high == pytest.approx(100))


def test_equal_seeds_give_equal_intervals() -> None:
    scores = np.random.default_rng(0).random(30)
    assert bootstrap_interval(scores, seed=1) == bootstrap_interval(scores, seed=1)
    assert bootstrap_interval(scores, seed=1) != bootstrap_interval(scores, seed=2)
