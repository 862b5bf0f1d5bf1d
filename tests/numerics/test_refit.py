"""Refit, scale and the weights of tokens against independent solutions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from striate.pruning.compensation.gaps import Gap, find_gaps, with_followers
from striate.pruning.compensation.refit import RIDGES, HeldOut, RefitSums, best_refit
from striate.pruning.compensation.token_choice import is_held_out, kind_weights

F, D, N = 6, 4, 50


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def tokens() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """W0 (D, F), a (N, F), what is lacking (N, D), and w (N,)."""
    return drawn(0, D, F), drawn(1, N, F), drawn(2, N, D), drawn(3, N).square() + 0.1


def sums_of(inputs: torch.Tensor, lacking: torch.Tensor, weights: torch.Tensor, parts: int = 3) -> RefitSums:
    sums = RefitSums(F, D, torch.device("cpu"))
    for part in zip(inputs.tensor_split(parts), lacking.tensor_split(parts), weights.tensor_split(parts), strict=True):
        sums.add(*part)
    return sums


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 3.0])
def test_a_refit_solves_the_weighted_ridge_regression(tokens: tuple[torch.Tensor, ...], ridge: float) -> None:
    weight, inputs, lacking, weights = (tensor.numpy() for tensor in tokens)
    wanted = inputs @ weight.T + lacking
    scale = ridge * np.mean([np.sum(weights * inputs[:, column] ** 2) for column in range(F)])
    # min sum w |t - W a|^2 + l |W - W0|^2, as one least squares problem with l as further rows.
    rows = np.vstack([np.sqrt(weights)[:, None] * inputs, np.sqrt(scale) * np.eye(F)])
    goals = np.vstack([np.sqrt(weights)[:, None] * wanted, np.sqrt(scale) * weight.T])
    solution = np.linalg.lstsq(rows, goals, rcond=None)[0].T
    change = sums_of(*tokens[1:]).change(ridge)
    assert change is not None
    np.testing.assert_allclose(weight + change.numpy(), solution, atol=1e-9)


def test_a_transform_of_the_output_is_among_the_solutions(tokens: tuple[torch.Tensor, ...]) -> None:
    weight, inputs, _, weights = tokens
    transform = drawn(4, D, D)
    lacking = inputs @ weight.T @ (transform.T - torch.eye(D, dtype=torch.float64))
    change = sums_of(inputs, lacking, weights).change(1e-12)
    assert change is not None
    torch.testing.assert_close(weight + change, transform @ weight, atol=1e-8, rtol=0)


def test_a_refit_fits_no_worse_than_the_best_transform_of_the_output(tokens: tuple[torch.Tensor, ...]) -> None:
    weight, inputs, lacking, _ = tokens
    outputs, wanted = inputs @ weight.T, inputs @ weight.T + lacking
    transform = torch.linalg.solve(outputs.T @ outputs, outputs.T @ wanted)
    change = sums_of(inputs, lacking, torch.ones(N)).change(1e-12)
    assert change is not None
    assert (lacking - inputs @ change.T).square().sum() < (wanted - outputs @ transform).square().sum()


def test_what_is_linear_in_the_input_is_recovered(tokens: tuple[torch.Tensor, ...]) -> None:
    weight, inputs, _, weights = tokens
    layer = drawn(5, D, F)
    held = HeldOut(inputs[:10].float(), (inputs[:10] @ layer.T).float(), weights[:10])
    sums = sums_of(inputs[10:], inputs[10:] @ layer.T, weights[10:])
    refit = best_refit(weight.float(), sums, held)
    assert refit.ridge == min(RIDGES)
    assert refit.weight is not None
    torch.testing.assert_close(refit.weight, (weight + layer).float(), atol=1e-3, rtol=0)
    assert refit.after < 1e-6 * refit.before


def test_a_gain_is_taken_out_of_the_weight(tokens: tuple[torch.Tensor, ...]) -> None:
    weight, inputs, _, weights = tokens
    layer = drawn(5, D, F)
    held = HeldOut(inputs[:10].float(), (inputs[:10] @ layer.T).float(), weights[:10])
    refit = best_refit(weight.float(), sums_of(inputs, inputs @ layer.T, weights), held, gain=0.25)
    assert refit.weight is not None
    torch.testing.assert_close(refit.weight, (weight + 4 * layer).float(), atol=1e-2, rtol=0)
    assert refit.after < 1e-6 * refit.before


def test_a_large_ridge_changes_nothing(tokens: tuple[torch.Tensor, ...]) -> None:
    change = sums_of(*tokens[1:]).change(1e12)
    assert change is not None
    assert change.abs().max() < 1e-9


def test_no_change_is_a_candidate_and_noise_is_left_alone(tokens: tuple[torch.Tensor, ...]) -> None:
    weight, inputs, lacking, weights = tokens
    opposite = HeldOut(inputs.float(), -lacking.float(), weights)
    refit = best_refit(weight.float(), sums_of(inputs, lacking, weights), opposite)
    assert refit.weight is None
    assert refit.ridge is None
    assert refit.after == refit.before == pytest.approx(float((lacking.square().sum(1) * weights).sum()))


def test_a_layer_that_adds_nothing_needs_no_change(tokens: tuple[torch.Tensor, ...]) -> None:
    weight, inputs, _, weights = tokens
    nothing = torch.zeros(N, D, dtype=torch.float64)
    refit = best_refit(
        weight.float(), sums_of(inputs, nothing, weights), HeldOut(inputs.float(), nothing.float(), weights)
    )
    assert refit.weight is None
    assert refit.after == 0


def test_weights_are_judged_as_they_are_stored(tokens: tuple[torch.Tensor, ...]) -> None:
    weight, inputs, _, weights = tokens
    lacking = inputs @ drawn(5, D, F).T
    held = HeldOut(inputs.float(), lacking.float(), weights)
    coarse = weight.bfloat16()
    refit = best_refit(coarse, sums_of(inputs, lacking, weights), held)
    assert refit.weight is not None
    assert refit.weight.dtype == torch.bfloat16
    rest = lacking - inputs.float().double() @ (refit.weight.double() - coarse.double()).T
    assert refit.after == pytest.approx(float((rest.square().sum(1) * weights).sum()), rel=1e-3)


def test_sums_that_can_not_be_inverted_are_left_out() -> None:
    inputs = torch.zeros(3, F)
    assert sums_of(inputs, torch.ones(3, D), torch.ones(3)).change(1e-5) is None


def test_kinds_of_tokens_have_the_same_total_weight() -> None:
    kinds = torch.tensor([0] * 90 + [1] * 9 + [2])
    weights = kind_weights(kinds, torch.bincount(kinds, minlength=3))
    assert [float(weights[kinds == kind].sum()) for kind in range(3)] == pytest.approx([1 / 3] * 3)
    text = torch.tensor([1] * 3 + [2])
    weights = kind_weights(text, torch.bincount(text, minlength=3))
    assert weights.tolist() == pytest.approx([1 / 6] * 3 + [1 / 2])


def test_one_sample_in_four_is_held_out_and_of_two_one() -> None:
    assert [number for number in range(12) if is_held_out(number)] == [1, 5, 9]


@pytest.mark.parametrize(
    ("removed", "expected"),
    [
        ((), ()),
        ((5,), (Gap((5,), 4),)),
        ((7, 2, 3), (Gap((2, 3), 1), Gap((7,), 6))),
        ((0, 1, 3), (Gap((0, 1), None), Gap((3,), 2))),
    ],
)
def test_gaps(removed: tuple[int, ...], expected: tuple[Gap, ...]) -> None:
    assert find_gaps(removed) == expected


@pytest.mark.parametrize(
    ("removed", "expected"),
    [
        ((2, 4), (Gap((2,), 1), Gap((4,), 3), Gap((), 5), Gap((), 6))),
        ((4,), (Gap((4,), 3), Gap((), 5), Gap((), 6))),
        ((6,), (Gap((6,), 5),)),
        ((0, 3), (Gap((0,), None), Gap((), 1), Gap((3,), 2), Gap((), 4), Gap((), 5), Gap((), 6))),
    ],
)
def test_layers_that_follow_the_first_gap(removed: tuple[int, ...], expected: tuple[Gap, ...]) -> None:
    gaps = with_followers(find_gaps(removed), 7)
    assert gaps == expected
    assert [gap.end for gap in gaps] == sorted(gap.end for gap in gaps)
