"""Intervals of scores, differences and retention: published values, exact coverage, a plain loop, and simulation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import interval_coverage
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from striate.artifacts import Difference
from striate.scores.student_t import student_quantile
from striate.tasks.scoring import bootstrap as resampling
from striate.tasks.scoring.bootstrap import bootstrap_t
from striate.tasks.scoring.compare import compare_pairs
from striate.tasks.scoring.intervals import (
    changed_answers,
    mcnemar,
    resolvable_difference,
    share_interval,
)
from striate.tasks.scoring.paired_scores import Paired, clusters_of
from striate.tasks.scoring.picture_sample import PictureSample
from striate.tasks.scoring.score_tests import Shares, difference_statistic, ratio_statistic

SCORES = st.lists(st.floats(0, 1), min_size=8, max_size=30)
BINARY = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=5, max_size=40)
# Fagerland, Lydersen and Laake 2014 (Statistics in Medicine 33, 2850-2875), airway hyper-responsiveness.
AIRWAYS = Shares(21, both=1 / 21, gained=1 / 21, lost=7 / 21)
SINGLY = tuple((str(place),) for place in range(10_000))


def compared(baseline: Any, other: Any, pictures: Any = None, weights: Any = None) -> Difference:
    """The row of one task as `striate evaluate` makes it, from scores alone."""
    pair = Paired.of(baseline, other, weights, pictures)
    return compare_pairs(("other", "baseline"), ("p", "t", "exact", "visual"), [pair], 100, 0)


def averaged(pairs: list[Paired]) -> Difference:
    return compare_pairs(("other", "baseline"), ("*", "visual", "mean", "visual"), pairs, 100, 0)


def share_of(scores: Any, pictures: Any = None) -> tuple[float, float]:
    found = share_interval(PictureSample.of([Paired.of(scores, scores, None, pictures)]))
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


def answers(right: int, gained: int, lost: int, n: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Scores of two models that both have `right` items, and `gained` and `lost` ones apart."""
    place = np.arange(n)
    return (place < right + lost) * 1.0, ((place < right) | (place >= n - gained)) * 1.0


@pytest.mark.parametrize("edge", [-0.517, -0.026])
def test_differences_have_tangos_published_interval(edge: float) -> None:
    assert abs(difference_statistic(AIRWAYS, edge)) == pytest.approx(1.96, abs=0.005)


@pytest.mark.parametrize("edge", [0.065, 0.907])
def test_ratios_have_tangs_published_interval(edge: float) -> None:
    assert abs(ratio_statistic(AIRWAYS, edge)) == pytest.approx(1.96, abs=0.01)


def test_a_score_has_the_interval_of_agresti_and_coull() -> None:
    z = student_quantile(2 * 49)
    centre = (20 + z**2 / 2) / (50 + z**2)
    half = z * math.sqrt(centre * (1 - centre) / (50 + z**2))
    assert share_of([1] * 20 + [0] * 30) == pytest.approx((centre - half, centre + half))


def test_a_large_sample_has_the_normal_interval() -> None:
    baseline, other = answers(5000, 800, 700, 9000)
    row = compared(baseline, other)
    half = 1.96 * math.sqrt((1500 / 9000 - (100 / 9000) ** 2) / 9000)
    assert (row.low, row.high) == pytest.approx((100 / 9000 - half, 100 / 9000 + half), abs=2e-5)


def outcomes(n: int, gained: float, lost: float, most: int) -> Iterator[tuple[int, int, float]]:
    """Every number of gained and lost items of n, up to `most` of each, with its probability."""
    for up in range(min(n, most) + 1 if gained else 1):
        for down in range(min(n - up, most) + 1 if lost else 1):
            ways = math.lgamma(n + 1) - math.lgamma(up + 1) - math.lgamma(down + 1) - math.lgamma(n - up - down + 1)
            yield up, down, math.exp(ways) * gained**up * lost**down * (1 - gained - lost) ** (n - up - down)


@pytest.mark.parametrize(
    ("n", "gained", "lost", "least", "most"),
    [
        (20, 0.2, 0.1, 0.94, 0.975),
        (100, 0.01, 0.04, 0.93, 0.975),
        # At two expected changes no test without chance lies between 94% and 98%: three of three would have to tell.
        (100, 0.01, 0.01, 0.975, 0.992),
        (100, 0.0, 0.02, 0.975, 0.992),
    ],
)
def test_the_exact_coverage_of_rare_changes(n: int, gained: float, lost: float, least: float, most: float) -> None:
    held = above = below = 0.0
    for up, down, chance in outcomes(n, gained, lost, 12):
        if chance > 1e-7:
            row = compared(*answers(0, up, down, n))
            assert row.low is not None
            assert row.high is not None
            above, below = above + chance * (row.low > gained - lost), below + chance * (row.high < gained - lost)
            held += chance * (row.low <= gained - lost <= row.high)
    assert least <= held <= most
    assert max(above, below) <= 0.05


@pytest.mark.parametrize("right", [0.1, 0.3, 0.5, 0.9])
def test_the_exact_coverage_of_a_score_of_20_items(right: float) -> None:
    held = 0.0
    for count in range(21):
        low, high = share_of([1] * count + [0] * (20 - count))
        held += math.comb(20, count) * right**count * (1 - right) ** (20 - count) * (low <= right <= high)
    assert 0.93 <= held <= 0.985


def mid_p(gained: int, lost: int) -> float:
    """Return McNemar's two-sided p, the outcome itself counted half (Lancaster 1961)."""
    changed, most = gained + lost, max(gained, lost)
    tail = sum(math.comb(changed, count) for count in range(most + 1, changed + 1)) + math.comb(changed, most) / 2
    return min(1.0, 2 * tail / 2**changed)


def exact_coverage(expected: float, refuses: Callable[[float], bool]) -> float:
    """Return how often no difference is held for possible, of 100 items of which `expected` change, each way alike."""
    share, held = expected / 200, 0.0
    for gained in range(31):
        for lost in range(31):
            ways = math.comb(100, gained) * math.comb(100 - gained, lost)
            if not refuses(mid_p(gained, lost)):
                held += ways * share ** (gained + lost) * (1 - 2 * share) ** (100 - gained - lost)
    return held


def test_where_two_answers_change_no_rule_of_their_numbers_is_nearer_to_95() -> None:
    """Whoever refuses three changes to one side, and all that says more, is at 94%; but at 88% where four change."""
    three = mid_p(3, 0)
    assert exact_coverage(2, lambda p: p <= 0.05) == pytest.approx(0.997, abs=5e-4)
    assert exact_coverage(2, lambda p: p < three) == pytest.approx(0.986, abs=1e-3)
    assert exact_coverage(2, lambda p: p <= three) == pytest.approx(0.938, abs=1e-3)
    assert exact_coverage(4, lambda p: p <= three) == pytest.approx(0.881, abs=1e-3)


def test_the_same_pictures_in_every_task_count_once() -> None:
    generator = np.random.default_rng(1)
    one, two = generator.integers(0, 2, (2, 60))
    names = [f"p{place}" for place in range(60)]
    apart = averaged([Paired.of(one, two), Paired.of(one.copy(), two.copy()), Paired.of(one.copy(), two.copy())])
    same = averaged([Paired.of(one.copy(), two.copy(), None, names) for _ in range(3)])
    alone = compared(one, two, names)
    assert (apart.clusters, same.clusters) == (180, 60)
    # Asked three times, the same pictures tell what they told once, but that their covariance is estimated.
    assert (same.low, same.high) == pytest.approx((alone.low, alone.high), abs=0.01)
    assert _width(apart) == pytest.approx(_width(same) / math.sqrt(3), rel=0.1)


def _width(row: Difference) -> float:
    assert row.low is not None
    assert row.high is not None
    return row.high - row.low


def test_pictures_that_one_item_shows_together_are_one_unit() -> None:
    items = [("a",), ("b", "c"), ("c", "d"), ("e",), ("d",), ("a", "f")]
    assert clusters_of(items).tolist() == [0, 1, 1, 2, 1, 0]


def test_the_variance_by_picture_equals_a_plain_loop() -> None:
    generator = np.random.default_rng(2)
    picture, task = generator.integers(0, 15, 80), generator.integers(0, 3, 80)
    scores = generator.random((2, 80))
    pairs = [
        Paired.of(*scores[:, task == place], None, [f"p{name}" for name in picture[task == place]])
        for place in range(3)
    ]
    means = [scores[:, task == place].mean(1) for place in range(3)]
    expected = np.zeros((2, 2))
    for name in set(picture.tolist()):
        error, weight, leverage = np.zeros(2), 0.0, 0.0
        for place in range(3):
            mine, size = (task == place) & (picture == name), (task == place).sum()
            error += sum(((scores[:, item] - means[place]) / size / 3 for item in np.flatnonzero(mine)), np.zeros(2))
            weight += mine.sum() / size / 3
            leverage += mine.sum() / size / 3 * mine.sum() / size
        expected += np.outer(error, error) / (1 - leverage / weight)
    assert PictureSample.of(pairs).covariance == pytest.approx(expected)


def test_items_of_one_picture_taken_for_independent_ones_look_too_sure() -> None:
    generator = np.random.default_rng(6)
    draw = interval_coverage.changed(generator, [10] * 30, 0.3, 0.1, 0.6)
    pair = draw.pairs[0]
    together = compared(pair.baseline, pair.other, pair.pictures)
    assert _width(compared(pair.baseline, pair.other)) < 0.7 * _width(together)


@pytest.mark.parametrize("right", [0, 20])
def test_no_interval_of_a_share_has_no_width(right: int) -> None:
    low, high = share_of([1] * right + [0] * (20 - right))
    assert high - low > 0.14
    row = compared([1] * right + [0] * (20 - right), [1] * right + [0] * (20 - right))
    assert row.low == pytest.approx(-row.high if row.high else 0)
    assert _width(row) == pytest.approx(2 * 0.17, abs=0.02)
    if right:
        assert row.retention_low == pytest.approx(84, abs=2)
        assert row.retention_high == pytest.approx(10000 / 84, abs=3)


@pytest.mark.parametrize(
    ("pairs", "why"),
    [
        ([Paired.of([1, 0, 1, 1], [1, 1, 1, 0])], "4 independent pictures are too few"),
        ([Paired.of([1] * 50, [0] * 50, None, ["one"] * 50)], "one picture shows no spread"),
        ([Paired.of([1, 0] * 50, [0, 0] * 50, None, ["a", "b"] * 50)], "2 independent pictures are too few"),
        ([Paired.of([1] * 50, [0] * 50), Paired.of([1], [1])], "a task with one picture shows no spread"),
        (
            [Paired.of([1, 0] * 40, [0, 0] * 40, None, [*SINGLY[:40], *[("big",)] * 40])],
            "a few of the 41 pictures carry most of the weight",
        ),
    ],
)
def test_where_no_interval_can_hold_there_is_none_and_it_says_why(pairs: list[Paired], why: str) -> None:
    row = averaged(pairs)
    assert (row.low, row.high, row.retention_low, row.retention_high, row.resolvable) == (None,) * 5
    assert row.no_interval == why
    assert row.retention is not None


@pytest.mark.parametrize(("free", "value"), [(5, 2.5706), (7, 2.3646), (30, 2.0423), (1000, 1.9623)])
def test_quantiles_of_student_equal_the_printed_table(free: int, value: float) -> None:
    assert student_quantile(free) == pytest.approx(value, rel=0.002)


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
    pair = interval_coverage.changed(generator, [1] * 400, 0.2, 0.0).pairs[0]
    size = resolvable_difference(PictureSample.of([pair]))
    found = 0
    for _ in range(200):
        draw = interval_coverage.changed(generator, [1] * 400, 0.2, size).pairs[0]
        low = compared(draw.baseline, draw.other).low
        found += low is not None and low > 0
    assert 0.7 <= found / 200 <= 0.9


def test_there_is_no_retention_of_nothing() -> None:
    row = compared([0] * 9, [1, 0, 1] * 3)
    assert (row.retention, row.retention_low, row.retention_high) == (None, None, None)
    assert row.no_interval == "the baseline scores nothing"


def test_there_is_no_interval_when_the_baseline_may_well_be_nothing() -> None:
    row = compared([1] + [0] * 19, [1, 1] + [0] * 18)
    assert (row.retention, row.retention_low, row.retention_high) == (200.0, None, None)
    assert row.low is not None
    assert row.no_interval == "the baseline's score can't be told from 0"


def test_weights_count_as_repeated_items() -> None:
    assert compared([0, 1], [1, 1], weights=[3, 1]).difference == pytest.approx(0.75)


def test_the_macro_average_weighs_tasks_alike() -> None:
    row = averaged([Paired.of([0] * 9, [1] * 9), Paired.of([1], [1])])
    assert (row.baseline_score, row.score) == pytest.approx((0.5, 1.0))


def test_scores_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        compared([1, 0], [1])
    with pytest.raises(ValueError, match="2 scores, but pictures of 1 items"):
        compared([1, 0], [1, 0], ["a"])


def test_scores_above_one_are_taken_in_their_own_unit() -> None:
    generator = np.random.default_rng(3)
    baseline, other = generator.random((2, 40))
    small, large = compared(baseline, other), compared(3 * baseline, 3 * other)
    assert (small.low, small.retention_low) != (None, None)
    assert large.difference == pytest.approx(3 * small.difference)
    assert _width(large) == pytest.approx(3 * _width(small), rel=0.15)


@settings(max_examples=60, deadline=None)
@given(BINARY)
def test_every_interval_holds_its_estimate(pairs: list[tuple[bool, bool]]) -> None:
    row = compared(*np.array(pairs).T)
    assert row.low is not None
    assert row.high is not None
    assert -1 <= row.low < row.high <= 1
    assert row.low - 1e-9 <= row.difference <= row.high + 1e-9
    if row.retention_low is not None:
        assert row.retention is not None
        assert row.retention_high is not None
        assert 0 <= row.retention_low <= row.retention <= row.retention_high < 1e6


@settings(max_examples=40, deadline=None)
@given(SCORES)
def test_a_model_against_itself(scores: list[float]) -> None:
    row = compared(scores, scores)
    assert (row.difference, row.low) == (0, pytest.approx(-row.high if row.high else None))
    assert row.resolvable == row.high
    assert row.retention_low is None or row.retention_low < 100 < (row.retention_high or 0)


def test_the_bootstrap_draws_pictures_with_all_of_their_items() -> None:
    values, weights = np.random.default_rng(4).normal(size=30), np.random.default_rng(5).random(30) + 0.5
    names = [(f"p{place // 2}",) for place in range(30)]
    found = bootstrap_t(values, weights, names, 200, 7)
    sums, sizes = ((weights * part).reshape(15, 2).sum(1) for part in (values, 1.0))
    mean, ratios = sums.sum() / sizes.sum(), []
    error = math.sqrt(sum(((s - mean * w) / (sizes.sum() - w)) ** 2 for s, w in zip(sums, sizes, strict=True)))
    for row in np.random.default_rng(7).integers(15, size=(200, 15)):
        drawn = sums[row].sum() / sizes[row].sum()
        spread = math.sqrt((((sums[row] - drawn * sizes[row]) ** 2).sum()) * 15 / 14) / sizes[row].sum()
        ratios.append((drawn - mean) / spread)
    low, high = np.quantile(ratios, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((mean - high * error, mean - low * error))


def test_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).random(40)
    whole = bootstrap_t(values, np.ones(40), SINGLY[:40], 100, 5)
    monkeypatch.setattr(resampling, "DRAWS_AT_ONCE", 40 * 7)
    assert bootstrap_t(values, np.ones(40), SINGLY[:40], 100, 5) == whole
    assert bootstrap_t(values, np.ones(40), SINGLY[:40], 100, 6) != whole


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([1.0, 2.0] * 4, "8 independent texts are too few"),
        ([2.0] * 20, "no text differs from the others"),
        ([2.0] * 19 + [math.nan], "some score is not a number"),
    ],
)
def test_nats_without_an_interval_say_why(values: list[float], why: str) -> None:
    found = bootstrap_t(np.array(values), np.ones(len(values)), SINGLY[: len(values)], 100, 0)
    assert (found.low, found.high, found.why_none) == (None, None, why)


def test_without_draws_there_is_no_interval() -> None:
    found = bootstrap_t(np.arange(20.0), np.ones(20), SINGLY[:20], 0, 0)
    assert (found.low, found.high, found.why_none) == (None, None, "nothing was drawn")


def test_a_comparison_of_10_000_items_takes_no_second() -> None:
    generator = np.random.default_rng(8)
    pairs = [
        Paired.of(*generator.integers(0, 2, (2, 1000)), None, [f"p{place}" for place in range(1000)]) for _ in range(10)
    ]
    begin = time.perf_counter()
    averaged(pairs)
    assert time.perf_counter() - begin < 1


def check_coverage(line: dict[str, Any], repetitions: int) -> None:
    """Check a measured setting; exact where changes are so few that coverage jumps, else with Monte Carlo's error."""
    slack = 3 * math.sqrt(0.05 * 0.95 / repetitions)
    most = 1.0 if line["setting"] in interval_coverage.FEW_CHANGES else 0.975 + slack
    for what in ("score", "difference", "retention"):
        found = line[what]
        assert found["coverage"] is None or 0.93 - slack <= found["coverage"] <= most, (line["setting"], what, found)
    assert max(line["pass_sure_and_wrong"], line["failure_sure_and_wrong"]) <= 0.05 + slack


@pytest.mark.parametrize("name", ["same-pictures-20", "thirty-tasks", "two-pictures", "rare-five", "low-20"])
def test_coverage_in_brief(name: str) -> None:
    check_coverage(interval_coverage.measured(name, 200, 100, 1), 200)


@pytest.mark.simulation
@pytest.mark.parametrize("name", interval_coverage.SETTINGS)
def test_intervals_cover_the_truth_in_1000_repetitions(name: str) -> None:
    check_coverage(interval_coverage.measured(name, 1000, 500, 0), 1000)
