"""Scorers and intervals against independent float64 formulas and closed forms, on made-up layers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from striate.errors import DataError, ModelError, SpecError
from striate.scorers import SCORERS
from striate.scorers.angular_distance import angular_distance
from striate.scorers.block_influence import block_influence
from striate.scorers.modality_block_influence import modality_block_influence
from striate.scorers.stream import LayerStream, PartSums, TokenMasks, cosine_distance, tally
from striate.scorers.summary import summarise

Array = NDArray[np.float64]


class Layer(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.change(hidden_states)


def masks(attended: list[list[int]], image: list[list[int]] | None = None) -> TokenMasks:
    attended_BT = torch.tensor(attended).bool()
    return TokenMasks(attended_BT, torch.tensor(image).bool() if image else torch.zeros_like(attended_BT))


def cosines(x: Array, y: Array) -> Array:
    return (x * y).sum(-1) / np.sqrt((x * x).sum(-1)) / np.sqrt((y * y).sum(-1))


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(2, 7), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_scorers_match_the_formulas_in_float64(seed: int, B: int, T: int, D: int) -> None:
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(2, B, T, D))
    lengths = generator.integers(1, T + 1, size=B)
    attended = np.arange(T)[None] < lengths[:, None]
    image = (generator.random((B, T)) < 0.5) & attended
    found = TokenMasks(torch.tensor(attended), torch.tensor(image))
    x_in, x_out = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    distance = 1 - cosines(x, y)
    blocks = block_influence(x_in, x_out, found)["all"]
    np.testing.assert_allclose(blocks.total, (distance * attended).sum(1), atol=1e-5)
    np.testing.assert_array_equal(blocks.tokens, attended.sum(1))
    parts = modality_block_influence(x_in, x_out, found)
    np.testing.assert_allclose(parts["image"].total, (distance * image).sum(1), atol=1e-5)
    np.testing.assert_allclose(parts["text"].total, (distance * (attended & ~image)).sum(1), atol=1e-5)
    np.testing.assert_array_equal(parts["image"].tokens + parts["text"].tokens, attended.sum(1))
    angles = angular_distance(x_in, x_out, found)["last"]
    expected = np.arccos(np.clip(cosines(x, y), -1, 1))[np.arange(B), lengths - 1] / np.pi
    np.testing.assert_allclose(angles.total, expected, atol=2e-4 if D == 1 else 1e-5)
    np.testing.assert_array_equal(angles.tokens, np.ones(B))


@pytest.mark.parametrize(
    ("out", "distance", "angle"),
    [
        ([3.0, 0.0], 0.0, 0.0),
        ([0.0, 2.0], 1.0, 0.5),
        ([-1.0, 0.0], 2.0, 1.0),
        ([1.0, 1.0], 1 - math.sqrt(0.5), 0.25),
        ([1.0, 1e-4], 5e-9, 1e-4 / math.pi),
    ],
)
def test_closed_forms(out: list[float], distance: float, angle: float) -> None:
    x_in, x_out = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[out]])
    one = masks([[1]])
    assert block_influence(x_in, x_out, one)["all"].total.item() == pytest.approx(distance, rel=1e-3, abs=1e-12)
    assert angular_distance(x_in, x_out, one)["last"].total.item() == pytest.approx(angle, rel=1e-3, abs=1e-12)


def test_a_zero_vector_is_orthogonal_to_others_and_equal_to_itself() -> None:
    x, y = torch.tensor([[[0.0, 0.0], [1.0, 2.0], [0.0, 0.0]]]), torch.tensor([[[3.0, 4.0], [0.0, 0.0], [0.0, 0.0]]])
    assert cosine_distance(x, y).tolist() == [[1.0, 1.0, 0.0]]
    assert angular_distance(x[:, :1], y[:, :1], masks([[1]]))["last"].total.item() == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_unchanged_token_scores_exactly_zero_in_every_dtype(dtype: torch.dtype) -> None:
    x = (torch.randn(2, 5, 64) * 300).to(dtype)
    assert cosine_distance(x, x).abs().max() == 0
    assert angular_distance(x, x.clone(), masks([[1] * 5] * 2))["last"].total.abs().max() == 0


def test_half_precision_states_are_summed_in_float32() -> None:
    x, y = torch.randn(1, 2000, 16).bfloat16(), torch.randn(1, 2000, 16).bfloat16()
    total = block_influence(x, y, masks([[1] * 2000]))["all"].total
    assert total.dtype is torch.float32
    expected = (1 - cosines(x.double().numpy(), y.double().numpy())).sum()
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_padding_may_hold_anything() -> None:
    values_BT = torch.tensor([[1.0, math.nan], [2.0, math.inf]])
    assert tally(values_BT, masks([[1, 0], [1, 0]]).attended).total.tolist() == [1.0, 2.0]


def test_the_last_token_is_the_last_attended_one_on_either_side_of_the_padding() -> None:
    found = masks([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]]).last
    assert found.int().tolist() == [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_tokens_weigh_the_same_whatever_sample_they_are_in() -> None:
    sums = PartSums(np.array([[3.0], [0.5]]), np.array([3.0, 1.0]))
    assert summarise("x", {"all": sums}, seed=0).values == (3.5 / 4,)


def test_parts_weigh_the_same_however_many_tokens_they_have() -> None:
    image = PartSums(np.array([[90.0, 0.0]]), np.array([90.0]))
    text = PartSums(np.array([[0.0, 5.0]]), np.array([10.0]))
    found = summarise("x", {"image": image, "text": text}, seed=0)
    assert found.values == (0.5, 0.25)
    assert found.parts == {"image": (1.0, 0.0), "text": (0.0, 0.5)}
    assert found.tokens == {"image": 90, "text": 10}
    assert found.low == found.high == found.values


def test_the_interval_holds_the_truth_95_times_in_100() -> None:
    generator = np.random.default_rng(7)
    hits = 0
    for trial in range(200):
        sums = generator.normal(0.3, 0.1, size=(60, 1))
        found = summarise("x", {"all": PartSums(sums, np.ones(60))}, seed=trial)
        assert found.low[0] < found.values[0] < found.high[0]
        hits += found.low[0] <= 0.3 <= found.high[0]
    assert 180 <= hits <= 199


def test_the_interval_is_as_wide_as_the_normal_one_and_repeats_with_its_seed() -> None:
    sums = np.random.default_rng(1).normal(0.3, 0.1, size=(400, 3))
    parts = {"all": PartSums(sums, np.ones(400))}
    found = summarise("x", parts, seed=5)
    half = 1.96 * sums.std(axis=0, ddof=1) / 20
    np.testing.assert_allclose((np.array(found.high) - np.array(found.low)) / 2, half, rtol=0.1)
    assert found == summarise("x", parts, seed=5)
    assert found.low != summarise("x", parts, seed=6).low


def test_few_samples_with_pictures_still_have_an_interval() -> None:
    image = PartSums(np.array([[1.0], [0.0], [0.0]]), np.array([2.0, 0.0, 0.0]))
    text = PartSums(np.array([[1.0], [2.0], [3.0]]), np.array([4.0, 4.0, 4.0]))
    found = summarise("x", {"image": image, "text": text}, seed=0)
    assert found.values == (0.5,)
    assert math.isfinite(found.low[0])
    assert math.isfinite(found.high[0])


def test_a_part_without_tokens_is_refused() -> None:
    empty = PartSums(np.zeros((2, 3)), np.zeros(2))
    with pytest.raises(
        DataError, match="modality-block-influence needs image tokens, and the calibration set has none"
    ):
        summarise("modality-block-influence", {"image": empty}, seed=0)


def test_overflow_is_named_by_layer() -> None:
    sums = PartSums(np.array([[0.1, math.nan, math.inf]]), np.ones(1))
    with pytest.raises(ModelError, match="block-influence is not a number at layer 1, 2") as caught:
        summarise("block-influence", {"all": sums}, seed=0)
    assert "bfloat16" in str(caught.value)


def quarter_turn(x: Tensor) -> Tensor:
    return torch.stack([-x[..., 1], x[..., 0]], dim=-1)


def test_an_identity_layer_scores_0_and_a_quarter_turn_1() -> None:
    layers = nn.ModuleList([Layer(lambda x: x), Layer(quarter_turn), Layer(lambda x: (2 * x,))])
    states = torch.randn(2, 3, 2)
    with LayerStream(layers, list(SCORERS)) as stream, stream.batch(masks([[1, 1, 1]] * 2, [[1, 0, 0]] * 2)):
        hidden = layers[0](states)
        layers[2](layers[1](hidden_states=hidden))
    for name, turned in (("block-influence", 1.0), ("modality-block-influence", 1.0), ("angular-distance", 0.5)):
        values = summarise(name, stream.results(name), seed=0).values
        assert values == pytest.approx((0.0, turned, 0.0), abs=1e-6)
    assert not any(layer._forward_hooks for layer in layers)


def test_hooks_stay_silent_outside_a_batch() -> None:
    layers = nn.ModuleList([Layer(lambda x: x)])
    with LayerStream(layers, list(SCORERS)) as stream:
        layers[0](torch.randn(1, 2, 2))
    assert stream.results("block-influence") == {}


def run_layers(layers: nn.ModuleList, order: list[int], states: Tensor) -> None:
    with LayerStream(layers, list(SCORERS)) as stream, stream.batch(masks([[1, 1]])):
        for index in order:
            layers[index](states)


@pytest.mark.parametrize(
    ("order", "shape", "words"),
    [
        ([0], (1, 2, 4), "only 1 of 2 layers ran"),
        ([0, 0, 1], (1, 2, 4), "layer 0 did not run exactly once"),
        ([1, 0], (1, 2, 4), "layer 1 did not run exactly once, in order"),
        ([0, 1], (1, 3, 4), r"shape \(1, 3, 4\), not \(1, 2, 'D'\)"),
        ([0, 1], (4, 1, 2, 4), r"shape \(4, 1, 2, 4\)"),
    ],
)
def test_models_that_do_not_run_layer_by_layer_are_refused(
    order: list[int], shape: tuple[int, ...], words: str
) -> None:
    layers = nn.ModuleList([Layer(lambda x: x), Layer(lambda x: x)])
    with pytest.raises(ModelError, match=words) as caught:
        run_layers(layers, order, torch.randn(shape))
    assert "uniform:25%" in str(caught.value)
    assert not any(layer._forward_hooks for layer in layers)


@pytest.mark.parametrize("name", SCORERS.names())
def test_every_scorer_describes_itself(name: str) -> None:
    strategy = SCORERS.get(name)
    assert strategy.title
    assert strategy.summary[0].islower() or strategy.summary[:5] == "Block"
    assert not strategy.summary.endswith(".")
    assert strategy.paper.startswith("https://arxiv.org/abs/")
    assert (strategy.function.__doc__ or "").startswith("Return")


def test_an_unknown_scorer_is_answered_with_the_closest() -> None:
    with pytest.raises(SpecError, match="did you mean 'block-influence'"):
        SCORERS.get("block-influense")
