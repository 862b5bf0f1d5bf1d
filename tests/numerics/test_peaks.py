"""Peaks and centres of mass of layer scores, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from striate.scorers.statistics.peaks import peak_of


def test_a_sharp_peak_is_sure() -> None:
    values = np.array([0.1, 0.1, 0.9, 0.1])
    draws = values + np.random.default_rng(0).normal(0, 0.001, (500, 4))
    peak = peak_of(values, draws)
    assert (peak.layer, peak.low, peak.high, peak.share) == (2, 2, 2, 1.0)
    assert peak.centre == pytest.approx(2.0)
    assert peak.centre_low < 2.0 < peak.centre_high
    assert peak.centre_high - peak.centre_low < 0.05


def test_centre_of_mass_is_the_weighted_mean_above_the_lowest() -> None:
    values = np.array([5.0, 6.0, 8.0])
    peak = peak_of(values, values[None])
    assert peak.centre == pytest.approx((1 * 1 + 2 * 3) / 4)
    assert peak_of(values - 100, values[None] - 100).centre == pytest.approx(peak.centre)
    assert peak.centre_low == peak.centre == peak.centre_high


def test_a_doubtful_peak_spreads_over_its_rivals() -> None:
    draws = np.tile([[0.0, 1.0, 0.0, 0.9], [0.0, 0.9, 0.0, 1.0]], (50, 1))
    peak = peak_of(draws.mean(axis=0) + np.array([0, 0.01, 0, 0]), draws)
    assert (peak.layer, peak.low, peak.high, peak.share) == (1, 1, 3, 0.5)


def test_equal_scores_and_broken_resamples() -> None:
    flat = np.full(5, 0.3)
    assert peak_of(flat, flat[None]).centre == 2.0
    assert peak_of(flat, flat[None]).layer == 0
    broken = np.array([[np.nan, 0.0, 1.0], [0.0, 0.0, 1.0]])
    assert peak_of(np.array([0.0, 0.0, 1.0]), broken).share == 1.0
    assert peak_of(np.array([0.0, 0.0, 1.0]), broken[:1]).high == 2
