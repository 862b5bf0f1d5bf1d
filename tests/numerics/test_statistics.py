"""Bootstrap intervals against closed forms, simulated data, and a plain loop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from striate.artifacts import Difference
from striate.tasks.scoring import bootstrap as resampling
from striate.tasks.scoring.bootstrap import Paired, macro_replicates, student_quantile
from striate.tasks.scoring.compare import compare_pairs
from striate.tasks.scoring.intervals import (
    bootstrap_interval,
    changed_answers,
    mcnemar,
    mean_of,
    perplexity_retention,
    resolvable_difference,
)

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def replicates_of(scores: Any, repetitions: int, seed: int, weights: Any = None, clusters: Any = None) -> Any:
    return macro_replicates([Paired.of(scores, scores, weights, clusters)], repetitions, seed)


def compared(
    baseline: Any, other: Any, repetitions: int = 2000, seed: int = 0, weights: Any = None, clusters: Any = None
) -> Difference:
    """The row of one task as `striate evaluate` makes it, from scores alone."""
    pair = Paired.of(baseline, other, weights, clusters)
    return compare_pairs(("other", "baseline"), ("p", "t", "exact", "visual"), [pair], repetitions, seed)


def test_the_spread_of_replicates_is_the_standard_error() -> None:
    scores = np.random.default_rng(1).normal(size=400)
    values = replicates_of(scores, 20_000, 0).values[:, 0]
    assert values.mean() == pytest.approx(scores.mean(), abs=0.002)
    assert values.std() == pytest.approx(scores.std() / math.sqrt(400), rel=0.02)


def test_the_interval_of_a_large_sample_is_the_normal_one() -> None:
    scores = np.random.default_rng(2).random(900) < 0.3
    half = 1.96 * scores.std() / 30
    low, high = bootstrap_interval(scores, repetitions=20_000)
    assert low == pytest.approx(scores.mean() - half, abs=0.002)
    assert high == pytest.approx(scores.mean() + half, abs=0.002)


def test_replicates_equal_a_plain_loop() -> None:
    scores, weights = np.array([0.0, 1.0, 0.5]), np.array([1.0, 2.0, 3.0])
    drawn = np.random.default_rng([7, 0]).integers(3, size=(50, 3))
    expected = [np.average(scores[row], weights=weights[row]) for row in drawn]
    assert replicates_of(scores, 50, 7, weights).values[:, 0] == pytest.approx(expected)


def test_clusters_are_drawn_whole_and_alike_in_every_task() -> None:
    one, two = np.array([0.0, 1.0, 0.0, 1.0, 0.0]), np.array([1.0, 0.0, 1.0])
    pairs = [Paired.of(one, one, None, ["a", "a", "b", "c", "c"]), Paired.of(two, two, None, ["c", "b", "a"])]
    found = macro_replicates(pairs, 60, 3)
    assert (found.clusters, found.strata) == (3, 1)
    places = {"a": 0, "b": 1, "c": 2}
    for row, value in zip(np.random.default_rng([3, 0]).integers(3, size=(60, 3)), found.values[:, 0], strict=True):
        counts = np.bincount(row, minlength=3)
        means = [
            np.average(pair.baseline, weights=[counts[places[name]] + 1e-12 for name in pair.clusters])
            for pair in pairs
        ]
        assert value == pytest.approx(np.mean(means), abs=1e-6)


def test_replicates_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(3).random(40)
    whole = replicates_of(scores, 100, 5).values
    monkeypatch.setattr(resampling, "DRAWS_AT_ONCE", 40 * 7)
    assert replicates_of(scores, 100, 5).values == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(("free", "value"), [(1, 12.706), (2, 4.3027), (5, 2.5706), (30, 2.0423), (1000, 1.9623)])
def test_quantiles_of_student_equal_the_printed_table(free: int, value: float) -> None:
    assert student_quantile(free) == pytest.approx(value, rel=0.005)


def simulated(generator: np.random.Generator, n: int, changed: float, difference: float, together: int) -> Any:
    """Right and wrong answers of two models on n items, `together` to a picture, which half of the time decides."""
    pictures = n // together
    own, shared = generator.random((pictures, together)), generator.random((pictures, 1))
    draw = np.where(generator.random((pictures, together)) < 0.5, shared, own).ravel()
    gained, lost = (changed + difference) / 2, (changed - difference) / 2
    steady = generator.random(n) < 0.6
    baseline = np.where(draw < gained, 0.0, np.where(draw < gained + lost, 1.0, steady))
    other = np.where(draw < gained, 1.0, np.where(draw < gained + lost, 0.0, steady))
    return baseline, other, [f"p{index // together}" for index in range(n)]


@pytest.mark.parametrize(
    ("n", "changed", "difference", "together"),
    [
        (20, 0.3, 0.1, 1),
        (50, 0.2, 0.1, 1),
        (100, 0.3, 0.1, 1),
        (300, 0.1, 0.05, 1),
        (300, 0.2, 0.0, 1),
        (60, 0.3, 0.1, 3),
        (300, 0.2, 0.05, 5),
    ],
)
def test_intervals_cover_a_known_difference_in_93_to_97_percent_of_1000_repetitions(
    n: int, changed: float, difference: float, together: int
) -> None:
    generator = np.random.default_rng(n + together)
    hits = 0
    for trial in range(1000):
        baseline, other, clusters = simulated(generator, n, changed, difference, together)
        row = compared(baseline, other, 500, trial, clusters=clusters)
        hits += row.low - 1e-9 <= difference <= row.high + 1e-9
    assert 930 <= hits <= 970


def test_items_of_one_picture_taken_for_independent_ones_cover_too_little() -> None:
    generator, hits = np.random.default_rng(6), 0
    for trial in range(300):
        baseline, other, _ = simulated(generator, 300, 0.3, 0.1, 10)
        row = compared(baseline, other, 300, trial)
        hits += row.low <= 0.1 <= row.high
    assert hits / 300 < 0.9


def test_models_that_answer_alike_have_the_interval_of_an_exact_binomial_bound() -> None:
    bound = 1 - 0.025 ** (1 / 50)
    row = compared([1] * 50, [1] * 50)
    assert (row.difference, row.low, row.high) == pytest.approx((0, -bound, bound))
    assert bootstrap_interval([1] * 50, bounded=True) == pytest.approx((1 - bound, 1))
    # With that share of items changed, a sample of 50 shows none of them in 2.5% of samples.
    assert (1 - bound) ** 50 == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("lost", "gained", "p"), [(0, 0, 1.0), (1, 0, 1.0), (0, 6, 0.03125), (5, 15, 0.041389465), (60, 60, 1.0)]
)
def test_mcnemar_is_the_exact_binomial_test(lost: int, gained: int, p: float) -> None:
    assert mcnemar(lost, gained) == pytest.approx(p)
    assert mcnemar(gained, lost) == mcnemar(lost, gained)


def test_mcnemar_of_many_changes_is_near_the_normal_approximation() -> None:
    z = (abs(4200 - 3900) - 1) / math.sqrt(8100)
    assert mcnemar(4200, 3900) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)


def test_changed_answers_are_counted_only_where_scores_are_right_or_wrong() -> None:
    assert changed_answers([Paired.of([1, 1, 0, 0], [0, 1, 1, 1])]) == (1, 2)
    assert changed_answers([Paired.of([1, 0.5], [1, 1])]) is None


def test_the_resolvable_difference_is_found_in_80_percent_of_samples() -> None:
    generator = np.random.default_rng(11)
    baseline, other, clusters = simulated(generator, 400, 0.2, 0.0, 1)
    size = resolvable_difference(macro_replicates([Paired.of(baseline, other, None, clusters)], 2000, 0))
    found = 0
    for trial in range(300):
        baseline, other, clusters = simulated(generator, 400, 0.2, size, 1)
        found += compared(baseline, other, 300, trial, clusters=clusters).low > 0
    assert 0.7 <= found / 300 <= 0.9


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
        row = compared(base, other, 400, trial)
        assert row.low <= row.difference <= row.high
        hits += row.low <= 0.1 <= row.high
        paired_width += row.high - row.low
        plain_width += np.subtract(*bootstrap_interval(other, repetitions=400, seed=trial)[::-1])
    assert 0.91 <= hits / 300 <= 0.985
    assert paired_width < plain_width / 3


def test_retention_of_a_constant_ratio_has_no_width() -> None:
    baseline = np.random.default_rng(6).random(50) + 0.1
    row = compared(baseline, 0.9 * baseline)
    assert (row.retention, row.retention_low, row.retention_high) == pytest.approx((90, 90, 90))


def test_retention_intervals_cover_the_true_ratio() -> None:
    generator = np.random.default_rng(8)
    hits = 0
    for trial in range(300):
        baseline = generator.random(200) < 0.6
        other = np.where(generator.random(200) < 0.9, baseline, generator.random(200) < 0.3)
        row = compared(baseline, other, 400, trial)
        assert row.retention_low is not None
        assert row.retention_high is not None
        hits += row.retention_low <= 100 * (0.9 * 0.6 + 0.1 * 0.3) / 0.6 <= row.retention_high
    assert 0.91 <= hits / 300 <= 0.985


def test_there_is_no_retention_of_nothing() -> None:
    row = compared([0, 0, 0], [1, 0, 1])
    assert (row.retention, row.retention_low, row.retention_high) == (None, None, None)


def test_there_is_no_interval_when_the_baseline_may_well_be_nothing() -> None:
    # One right answer of 20 is missing from 36% of the samples.
    baseline = [1] + [0] * 19
    row = compared(baseline, [1, 1] + [0] * 18)
    assert (row.retention, row.retention_low, row.retention_high) == (200.0, None, None)


def test_weights_count_as_repeated_items() -> None:
    assert compared([0, 1], [1, 1], weights=[3, 1]).difference == pytest.approx(0.75)
    assert mean_of([Paired.of([0, 1], [1, 1], [3, 1])]) == pytest.approx([0.25, 1.0])


def test_the_macro_average_weighs_tasks_alike() -> None:
    pairs = [Paired.of([0] * 9, [1] * 9), Paired.of([1], [1])]
    assert mean_of(pairs) == pytest.approx([0.5, 1.0])
    assert macro_replicates(pairs, 100, 0).values == pytest.approx(np.tile([0.5, 1.0], (100, 1)))


def test_macro_replicates_draw_tasks_independently() -> None:
    scores = np.random.default_rng(9).normal(size=300)
    pairs = [Paired.of(scores, scores), Paired.of(scores.copy(), scores)]
    replicates = macro_replicates(pairs, 20_000, 0).values[:, 0]
    assert replicates.std() == pytest.approx(scores.std() / math.sqrt(300) / math.sqrt(2), rel=0.03)


def test_perplexity_retention_is_the_ratio_of_perplexities() -> None:
    pairs = [Paired.of([math.log(10)] * 2, [math.log(20)] * 2)]
    assert perplexity_retention(mean_of(pairs), macro_replicates(pairs, 20, 0)) == pytest.approx((50, 50, 50))


def test_scores_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        compared([1, 0], [1])


@settings(max_examples=40)
@given(SCORES)
def test_intervals_lie_within_the_scores(scores: list[float]) -> None:
    low, high = bootstrap_interval(scores, repetitions=200)
    assert min(scores) - 1e-12 <= low <= high <= max(scores) + 1e-12


@settings(max_examples=40)
@given(SCORES)
def test_a_model_against_itself(scores: list[float]) -> None:
    row = compared(scores, scores, 200)
    assert row.difference == 0
    assert row.low == -row.high < 0
    assert row.retention is None or row.retention == pytest.approx(100)
    assert row.retention_low is None or row.retention_low < 100 < (row.retention_high or 0)


def test_equal_seeds_give_equal_intervals() -> None:
    scores = np.random.default_rng(0).random(30)
    assert bootstrap_interval(scores, seed=1) == bootstrap_interval(scores, seed=1)
    assert bootstrap_interval(scores, seed=1) != bootstrap_interval(scores, seed=2)
