"""Rank correlations, split halves and samples needed, against closed forms and simulated rankings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from striate.scorers.statistics.score_summary import summarize
from striate.scorers.statistics.stability import rank_correlation, ranks, samples_needed, split_half
from striate.scorers.statistics.sums import PartSums


def test_ranks_share_what_ties_take() -> None:
    assert ranks(np.array([[3.0, 1.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0]])).tolist() == [[2.5, 0, 2.5, 1], [1.5] * 4]


@given(st.integers(3, 12), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_spearman_is_the_textbook_formula_where_nothing_ties(layers: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.permutation(layers), generator.permutation(layers)
    expected = 1 - 6 * ((a - b) ** 2).sum() / (layers * (layers**2 - 1))
    found = rank_correlation(np.exp(a / 2.0)[None], 3.0 * b[None] - 1)
    assert found[0] == pytest.approx(expected, abs=1e-12)


def test_spearman_with_ties_is_pearson_of_shared_ranks() -> None:
    a, b = np.array([1.0, 1.0, 2.0, 3.0, 3.0]), np.array([2.0, 1.0, 1.0, 5.0, 4.0])
    expected = np.corrcoef([0.5, 0.5, 2, 3.5, 3.5], [2, 0.5, 0.5, 4, 3])[0, 1]
    assert rank_correlation(a[None], b[None])[0] == pytest.approx(expected, abs=1e-12)


def test_a_row_without_order_has_no_correlation() -> None:
    found = rank_correlation(np.array([[1.0, 1.0], [np.nan, 2.0]]), np.array([[1.0, 2.0], [1.0, 2.0]]))
    assert np.isnan(found).all()


def test_samples_needed_solve_the_spearman_brown_formula() -> None:
    for correlation in (0.3, 0.6, 0.95):
        exact = 9 * (1 - correlation) / correlation
        assert exact * correlation / (1 + (exact - 1) * correlation) == pytest.approx(0.9)
        assert samples_needed(correlation, 20) == int(np.ceil(round(20 * exact, 6)))
    assert samples_needed(0.9, 32) == 32
    assert samples_needed(1.0, 32) == 1
    assert samples_needed(0.0, 32) is None
    assert samples_needed(-0.4, 32) is None


def noisy(samples: int, noise: float, seed: int = 0) -> PartSums:
    generator = np.random.default_rng(seed)
    return PartSums(np.linspace(0, 1, 12) + noise * generator.normal(size=(samples, 12)), np.ones(samples))


def test_halves_agree_wholly_where_there_is_no_noise() -> None:
    found = split_half([noisy(20, 0.0)], seed=0)
    assert found is not None
    assert (found.rank_correlation, found.low, found.high, found.samples_needed) == (1.0, 1.0, 1.0, 1)


def test_halves_agree_less_the_more_noise_there_is_and_the_forecast_holds() -> None:
    weak, strong = (split_half([noisy(40, noise)], seed=0) for noise in (3.0, 1.0))
    assert weak is not None
    assert strong is not None
    assert weak.rank_correlation < strong.rank_correlation < 1
    assert weak.low < weak.rank_correlation < weak.high
    assert weak.samples_needed is not None
    # Twice the forecast, split in halves of the forecast's size, must agree at about 0.9.
    many = split_half([noisy(2 * weak.samples_needed, 3.0, seed=1)], seed=0)
    assert many is not None
    assert many.rank_correlation == pytest.approx(0.9, abs=0.08)


def test_pure_noise_is_not_called_stable() -> None:
    generator = np.random.default_rng(3)
    found = [split_half([PartSums(generator.normal(size=(40, 12)), np.ones(40))], seed=0) for _ in range(30)]
    assert abs(np.mean([one.rank_correlation for one in found if one])) < 0.12


def test_few_samples_or_layers_or_no_order_say_nothing() -> None:
    assert split_half([noisy(3, 0.1)], seed=0) is None
    assert split_half([PartSums(np.ones((9, 1)), np.ones(9))], seed=0) is None
    assert split_half([PartSums(np.ones((9, 5)), np.ones(9))], seed=0) is None


def test_it_is_in_the_summary_repeats_with_its_seed_and_sees_parts_as_the_score_does() -> None:
    image, text = noisy(16, 0.5), noisy(16, 2.0, seed=9)
    found = summarize("x", {"image": image, "text": text}, seed=4)
    assert found.split_half == split_half([image, text], seed=4)
    alone = summarize("x", {"image": image, "text": text}, seed=4, shown=("text",))
    assert alone.split_half == split_half([image], seed=4)
    assert alone.values == found.parts["image"]
    assert (set(found.parts), set(alone.parts)) == ({"image", "text"}, {"text"})


def test_shown_parts_may_be_empty_and_bands_belong_to_parts() -> None:
    empty = PartSums(np.zeros((16, 12)), np.zeros(16))
    found = summarize("x", {"all": noisy(16, 0.5), "answer": empty}, seed=0, shown=("answer",))
    assert found.parts == found.part_low == found.part_high == {}
    both = summarize("x", {"all": noisy(16, 0.5), "answer": noisy(16, 0.5, 1)}, seed=0, shown=("answer",))
    assert list(both.parts) == list(both.part_low) == list(both.part_high) == ["answer"]
    assert both.part_low["answer"] != both.low
    assert both.tokens == {"all": 16, "answer": 16}
