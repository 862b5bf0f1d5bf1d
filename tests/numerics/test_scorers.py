"""Scorers and intervals against independent float64 formulas and closed forms, on made-up layers."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scorer_formulas import SampleStates, hsic, sample_sum
from torch import Tensor, nn

from striate.errors import DataError, ModelError, SpecError
from striate.scorers import SCORERS
from striate.scorers.linear_cka import centred
from striate.scorers.statistics.score_summary import summarize
from striate.scorers.statistics.sums import PartSums
from striate.scorers.streaming.masks import TokenMasks
from striate.scorers.streaming.spans import span_table
from striate.scorers.streaming.stream import LayerStream
from striate.scorers.streaming.view import LayerView, lengths

HIDDEN = [scorer for scorer in SCORERS if scorer.source == "hidden states"]


class Layer(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.change(hidden_states)


def masks(attended: list[list[int]], image: list[list[int]] | None = None) -> TokenMasks:
    attended_BT = torch.tensor(attended).bool()
    return TokenMasks(attended_BT, torch.tensor(image).bool() if image else torch.zeros_like(attended_BT))


def view(x: Tensor, y: Tensor, found: TokenMasks | None = None) -> LayerView:
    return LayerView.of(x, y, found or masks([[1] * x.shape[1]] * x.shape[0]))


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(2, 12), st.integers(1, 9), st.sampled_from([1.0, 0.05]))
@settings(max_examples=40, deadline=None)
def test_sums_match_the_formulas_in_float64(seed: int, B: int, T: int, D: int, step: float) -> None:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(B, T, D)).astype(np.float32)
    y = (x + step * generator.normal(size=(B, T, D))).astype(np.float32)
    lengths = generator.integers(1, T + 1, size=B)
    attended = np.arange(T)[None] < lengths[:, None]
    image = (generator.random((B, T)) < 0.5) & attended
    answer = (generator.random((B, T)) < 0.5) & attended
    found = TokenMasks(*map(torch.tensor, (attended, image, answer)))
    seen = view(torch.tensor(x), torch.tensor(y), found)
    for scorer in HIDDEN:
        for part, one in scorer.function(seen).items():
            for row, length in enumerate(lengths):
                alone = SampleStates(
                    x[row, None, :length].astype(float),
                    y[row, None, :length].astype(float),
                    image[row, :length],
                    answer[row, :length],
                )
                total, count = sample_sum(scorer.name, part, alone)
                assert int(one.tokens[row]) == count
                assert one.total[0, row].item() == pytest.approx(total, rel=1e-4, abs=1e-6)


CLOSED = [
    ([3.0, 0.0], 0.0, 0.0, 2.0),
    ([0.0, 2.0], 1.0, 0.5, math.sqrt(5)),
    ([-1.0, 0.0], 2.0, 1.0, 2.0),
    ([1.0, 1.0], 1 - math.sqrt(0.5), 0.25, 1.0),
    ([1.0, 1e-4], 5e-9, 1e-4 / math.pi, 1e-4),
    ([0.0, 0.0], 1.0, 0.5, 1.0),
]


@pytest.mark.parametrize(("out", "distance", "angle", "ratio"), CLOSED)
def test_closed_forms(out: list[float], distance: float, angle: float, ratio: float) -> None:
    seen = view(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[out]]))
    assert seen.cosine_distance.item() == pytest.approx(distance, rel=1e-3, abs=1e-12)
    assert seen.angle.item() / math.pi == pytest.approx(angle, rel=1e-3, abs=1e-12)
    assert seen.deviation.relative_update.item() == pytest.approx(ratio, rel=1e-6)


def test_a_zero_vector_is_orthogonal_to_others_and_equal_to_itself() -> None:
    x, y = torch.tensor([[[0.0, 0.0], [1.0, 2.0], [0.0, 0.0]]]), torch.tensor([[[3.0, 4.0], [0.0, 0.0], [0.0, 0.0]]])
    assert view(x, y).cosine_distance[0].tolist() == [[pytest.approx(1.0), pytest.approx(1.0), 0.0]]
    assert view(x, y).deviation.relative_update[0].tolist() == [[1.0, pytest.approx(1.0), 0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_unchanged_token_scores_exactly_zero_in_every_dtype(dtype: torch.dtype) -> None:
    x = (torch.randn(2, 8, 64) * 300).to(dtype)
    for scorer in HIDDEN:
        for one in scorer.function(view(x, x.clone(), masks([[1] * 8] * 2, [[1, 1, 1, 1, 0, 0, 0, 0]] * 2))).values():
            assert one.total.abs().max() == 0, scorer.name


@given(st.integers(0, 1000), st.floats(-7, 0), st.floats(-1, 3))
@settings(max_examples=60, deadline=None)
def test_small_turns_keep_their_digits(seed: int, turned: float, stretched: float) -> None:
    """Vectors that are 10**turned apart in angle and 10**stretched in length, as wide as those of a 7B model."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=4096).astype(np.float32)
    across = generator.normal(size=4096)
    across -= across @ x.astype(float) / (x.astype(float) @ x.astype(float)) * x
    y = 10**stretched * (x + 10**turned * np.linalg.norm(x) * across / np.linalg.norm(across))
    y = y.astype(np.float32)
    a, b = x.astype(float), y.astype(float)
    expected = np.arctan2(np.linalg.norm(b - (a @ b) / (a @ a) * a), (a @ b) / np.linalg.norm(a))
    found = lengths(torch.tensor(x)[None], torch.tensor(y)[None]).deviation().angle.item()
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_half_precision_states_are_summed_in_float32() -> None:
    x, y = torch.randn(1, 2000, 16).bfloat16(), torch.randn(1, 2000, 16).bfloat16()
    total = SCORERS.get("block-influence").function(view(x, y))["all"].total
    cos = torch.nn.functional.cosine_similarity(x.double(), y.double(), dim=-1)
    assert total.item() == pytest.approx((1 - cos).sum().item(), rel=1e-6)


def test_a_common_turn_shift_and_scale_leave_linear_cka_at_0() -> None:
    x = torch.randn(1, 20, 6, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    seen = view(x, 3 * x @ rotation + 5, masks([[1] * 20], [[1] * 10 + [0] * 10]))
    for name, tolerance in (("linear-cka", 1e-12), ("matrix-entropy", 1e-12)):
        for one in SCORERS.get(name).function(seen).values():
            assert one.total.item() == pytest.approx(0, abs=tolerance)


def test_unrelated_states_have_a_linear_cka_of_1_on_average_whatever_the_number_of_tokens() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 400, 8, 32)
    found = SCORERS.get("linear-cka").function(view(x, y, masks([[1] * 8] * 400)))["text"]
    assert found.total.mean().item() == pytest.approx(1, abs=0.03)


def test_u_centred_products_are_the_unbiased_hsic() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 9, 4))
    k, m = (torch.tensor(one @ one.T)[None] for one in (x, y))
    pairs, size = 1 - torch.eye(9)[None], torch.full((1, 1, 1), 9.0)
    found = (centred(k, pairs, size) * centred(m, pairs, size)).sum().item() / (9 * 6)
    assert found == pytest.approx(hsic(x @ x.T, y @ y.T), rel=1e-10)


def test_the_entropy_of_tokens_along_k_axes_is_ln_k() -> None:
    def axes(k: int) -> Tensor:
        return torch.cat([torch.eye(8)[:k], -torch.eye(8)[:k]]).repeat(4 // k, 1)[None]

    found = SCORERS.get("matrix-entropy").function(view(axes(1), axes(4), masks([[1] * 8])))["text"]
    assert found.total.item() == pytest.approx(math.log(4), rel=1e-9)


def test_few_tokens_do_not_count_for_linear_cka() -> None:
    x, y = torch.randn(2, 1, 9, 5)
    found = SCORERS.get("linear-cka").function(view(x, y, masks([[1] * 9], [[1] * 3 + [0] * 6])))
    assert found["image"].tokens.tolist() == [0]
    assert found["image"].total.tolist() == [[0]]
    assert found["text"].tokens.tolist() == [1]


def test_padding_may_hold_anything() -> None:
    values_BT = torch.tensor([[1.0, math.nan], [2.0, math.inf]])
    seen = view(torch.zeros(2, 2, 1), torch.zeros(2, 2, 1), masks([[1, 0], [1, 0]]))
    assert seen.tally(values_BT[None], "all")["all"].total.tolist() == [[1.0, 2.0]]
    x, y = torch.randn(2, 1, 9, 4)
    padded = masks([[1] * 8 + [0]], [[1] * 4 + [0] * 5])
    wild = [scorer.function(view(x, y, padded)) for scorer in HIDDEN]
    x[:, -1], y[:, -1] = math.nan, math.inf
    for scorer, before in zip(HIDDEN, wild, strict=True):
        after = scorer.function(view(x, y, padded))
        assert {part: one.total.tolist() for part, one in after.items()} == {
            part: one.total.tolist() for part, one in before.items()
        }


def test_prompt_and_answer_are_the_text_apart() -> None:
    found = TokenMasks(*(torch.tensor([row]).bool() for row in ([1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 1, 1])))
    rows = {kind: found.of(kind)[0].int().tolist() for kind in ("all", "image", "text", "prompt", "answer", "last")}
    assert rows == {
        "all": [1, 1, 1, 1, 0],
        "image": [1, 0, 0, 0, 0],
        "text": [0, 1, 1, 1, 0],
        "prompt": [0, 1, 1, 0, 0],
        "answer": [0, 0, 0, 1, 0],
        "last": [0, 0, 0, 1, 0],
    }


def test_the_last_token_is_the_last_attended_one_on_either_side_of_the_padding() -> None:
    found = masks([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]]).last
    assert found.int().tolist() == [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_tokens_weigh_the_same_whatever_sample_they_are_in() -> None:
    sums = PartSums(np.array([[3.0], [0.5]]), np.array([3.0, 1.0]))
    assert summarize("x", {"all": sums}, seed=0).values == (3.5 / 4,)


def test_none_and_all_of_the_samples_have_intervals_that_are_as_wide_as_exact_ones() -> None:
    never, always, half = np.zeros(60), np.ones(60), np.arange(60) % 2.0
    sums = {"all": PartSums(np.stack([never, always, half], axis=1), np.ones(60))}
    found = summarize("x", sums, seed=0, bounds=(0.0, 1.0))
    # Clopper and Pearson: of 0 of 60 the upper end is 1 - 0.025 ** (1 / 60).
    end = 1 - 0.025 ** (1 / 60)
    assert (found.low[:2], found.high[:2]) == (pytest.approx((0, 1 - end)), pytest.approx((end, 1)))
    plain = summarize("x", sums, seed=0)
    assert (plain.low[2], plain.high[2]) == (found.low[2], found.high[2])
    either = summarize("x", sums, seed=0, bounds=(-1.0, 1.0))
    assert (either.low[0], either.high[0]) == pytest.approx((-end, end))


def test_parts_weigh_the_same_however_many_tokens_they_have() -> None:
    image = PartSums(np.array([[90.0, 0.0]]), np.array([90.0]))
    text = PartSums(np.array([[0.0, 5.0]]), np.array([10.0]))
    found = summarize("x", {"image": image, "text": text}, seed=0)
    assert found.values == (0.5, 0.25)
    assert found.parts == {"image": (1.0, 0.0), "text": (0.0, 0.5)}
    assert found.tokens == {"image": 90, "text": 10}
    # One sample: no interval can hold.
    assert (found.low, found.high, found.part_low["image"], found.peak) == ((), (), (), None)


def test_the_interval_holds_the_truth_95_times_in_100() -> None:
    generator = np.random.default_rng(7)
    hits = 0
    for trial in range(200):
        sums = generator.normal(0.3, 0.1, size=(60, 1))
        found = summarize("x", {"all": PartSums(sums, np.ones(60))}, seed=trial)
        assert found.low[0] < found.values[0] < found.high[0]
        hits += found.low[0] <= 0.3 <= found.high[0]
    assert 180 <= hits <= 199


def test_the_interval_is_as_wide_as_the_normal_one_and_repeats_with_its_seed() -> None:
    sums = np.random.default_rng(1).normal(0.3, 0.1, size=(400, 3))
    parts = {"all": PartSums(sums, np.ones(400))}
    found = summarize("x", parts, seed=5)
    half = 1.96 * sums.std(axis=0, ddof=1) / 20
    np.testing.assert_allclose((np.array(found.high) - np.array(found.low)) / 2, half, rtol=0.1)
    assert found == summarize("x", parts, seed=5)
    assert found.low != summarize("x", parts, seed=6).low


def test_intervals_of_twelve_samples_are_moved_out_until_they_hold() -> None:
    generator, hits = np.random.default_rng(3), 0
    for trial in range(300):
        counts = generator.integers(5, 50, (12, 1)).astype(float)
        sums = PartSums(counts * generator.normal(0.3, 0.1, (12, 1)), counts[:, 0])
        found = summarize("x", {"all": sums}, seed=trial)
        hits += found.low[0] <= 0.3 <= found.high[0]
    # Plain percentiles hold in 90%.
    assert 0.915 <= hits / 300 <= 0.985


def test_the_fewest_samples_with_tokens_of_a_part_decide() -> None:
    image = PartSums(np.ones((20, 1)), np.array([2.0] * 9 + [0.0] * 11))
    text = PartSums(np.random.default_rng(1).random((20, 1)), np.ones(20))
    found = summarize("x", {"image": image, "text": text}, seed=0)
    assert (found.low, found.part_low["image"], found.peak) == ((), (), None)
    assert found.part_low["text"]


def test_few_samples_with_pictures_still_have_an_interval() -> None:
    image = PartSums(np.array([[1.0]] * 10 + [[0.0]] * 20), np.array([2.0] * 10 + [0.0] * 20))
    text = PartSums(np.tile([[1.0], [2.0], [3.0]], (10, 1)), np.full(30, 4.0))
    found = summarize("x", {"image": image, "text": text}, seed=0)
    assert found.values == (0.5,)
    assert math.isfinite(found.low[0])
    assert math.isfinite(found.high[0])


def test_a_part_without_tokens_is_refused() -> None:
    empty = PartSums(np.zeros((2, 3)), np.zeros(2))
    with pytest.raises(
        DataError, match="modality-block-influence needs image tokens, and the calibration set has none"
    ):
        summarize("modality-block-influence", {"image": empty}, seed=0)


def test_overflow_is_named_by_layer() -> None:
    sums = PartSums(np.array([[0.1, math.nan, math.inf]]), np.ones(1))
    with pytest.raises(ModelError, match="block-influence is not a number at layer 1, 2") as caught:
        summarize("block-influence", {"all": sums}, seed=0)
    assert "bfloat16" in str(caught.value)


def quarter_turn(x: Tensor) -> Tensor:
    return torch.stack([-x[..., 1], x[..., 0]], dim=-1)


def test_an_identity_layer_scores_0_and_a_quarter_turn_1() -> None:
    layers = nn.ModuleList([Layer(lambda x: x), Layer(quarter_turn), Layer(lambda x: (2 * x,))])
    states = torch.randn(2, 3, 2)
    with LayerStream(layers, HIDDEN) as stream, stream.batch(masks([[1, 1, 1]] * 2, [[1, 0, 0]] * 2)):
        hidden = layers[0](states)
        layers[2](layers[1](hidden_states=hidden))
    for name, turned in (("block-influence", 1.0), ("modality-block-influence", 1.0), ("angular-distance", 0.5)):
        found = summarize(name, stream.results(name), 0, SCORERS.get(name).shown)
        assert found.values == pytest.approx((0.0, turned, 0.0), abs=1e-6)
    assert not any(layer._forward_hooks for layer in layers)
    spans = span_table(stream.spans())
    assert spans[0] == pytest.approx((0, 0.5, 0), abs=1e-6)
    assert spans[1] == pytest.approx((0.5, 0.5), abs=1e-6)
    assert spans[2] == pytest.approx((0.5,), abs=1e-6)


@pytest.mark.parametrize("added", [False, True])
def test_many_layers_score_as_each_does_alone_whatever_comes_between_them(added: bool) -> None:
    layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(19)])
    found = masks([[1] * 12] * 2, [[1] * 5 + [0] * 7] * 2)
    states, seen = torch.randn(2, 12, 6), []
    with torch.no_grad(), LayerStream(layers, HIDDEN) as stream, stream.batch(found):
        for number, layer in enumerate(layers):
            before = states + 0.1 if added and number % 3 else states
            states = layer(before)
            seen.append((before, states))
    for scorer in HIDDEN:
        alone = [scorer.function(LayerView.of(*pair, found)) for pair in seen]
        for part, sums in stream.results(scorer.name).items():
            expected = torch.cat([one[part].total for one in alone]).T.numpy()
            np.testing.assert_allclose(sums.sums, expected, rtol=1e-9)


def test_no_hidden_states_stay_after_a_batch() -> None:
    layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(11)])
    alive: list[weakref.ref[Tensor]] = []
    with torch.no_grad(), LayerStream(layers, HIDDEN) as stream:
        for _ in range(3):
            with stream.batch(masks([[1] * 12] * 2, [[1] * 5 + [0] * 7] * 2)):
                states = torch.randn(2, 12, 6)
                for layer in layers:
                    states = layer(states)
                    alive.append(weakref.ref(states))
                    # While the pass runs, one state between layers is kept at most.
                    assert sum(one() is not None for one in alive[-5:-1]) <= 1
            del states
            gc.collect()
            assert not any(one() is not None for one in alive)


def test_spans_are_angles_from_a_layers_input_to_a_later_layers_output() -> None:
    layers = nn.ModuleList([nn.Linear(5, 5) for _ in range(4)])
    states = torch.randn(3, 4, 5)
    with torch.no_grad(), LayerStream(layers, HIDDEN) as stream, stream.batch(masks([[1, 1, 1, 0]] * 3)):
        path = [states]
        for layer in layers:
            path.append(layer(path[-1]))
    last = [one[:, 2].double() for one in path]
    spans = span_table(stream.spans())
    assert [len(row) for row in spans] == [4, 3, 2, 1]
    for n in range(1, 5):
        for start in range(5 - n):
            cos = torch.nn.functional.cosine_similarity(last[start], last[start + n], dim=-1)
            assert spans[n - 1][start] == pytest.approx((cos.arccos() / math.pi).mean().item(), rel=1e-5)
    assert summarize("a", stream.results("angular-distance"), 0).values == pytest.approx(spans[0], rel=1e-5)


def test_hooks_stay_silent_outside_a_batch() -> None:
    layers = nn.ModuleList([Layer(lambda x: x)])
    with LayerStream(layers, HIDDEN) as stream:
        layers[0](torch.randn(1, 2, 2))
    assert stream.results("block-influence") == {}


def run_layers(layers: nn.ModuleList, order: list[int], states: Tensor) -> None:
    with LayerStream(layers, HIDDEN) as stream, stream.batch(masks([[1, 1]])):
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
