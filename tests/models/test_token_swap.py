from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from planted_kit import Blind, pair_samples, plant, sharpen, teach

from striate.data.collate import Collator
from striate.data.samples import Message
from striate.errors import DataError, ModelError
from striate.models.structure.anatomy import decoder_layers, find_anatomy
from striate.scorers.runners.pairs import run_pairs
from striate.scorers.statistics.sums import PartSums
from striate.scorers.token_swap import (
    TOKEN_SWAP,
    TOKEN_SWAP_FLIPS,
    TOKEN_SWAP_ONWARD,
    Preferences,
    token_swap,
    token_swap_flips,
    token_swap_onward,
)
from striate.stages.analyze import analyze

if TYPE_CHECKING:
    from pathlib import Path

    from striate.models.io.load import Loaded

SWAPS = (TOKEN_SWAP, TOKEN_SWAP_FLIPS, TOKEN_SWAP_ONWARD)


def ignore(count: int) -> None:
    """Take no notice of pairs that are done."""


def score(parts: PartSums) -> np.ndarray:
    return parts.sums.sum(0) / parts.counts.sum()


TAUGHT = ("colour", "count")
PAIRS = 4


@pytest.fixture(autouse=True)
def _two_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("striate.scorers.runners.pairs.ATTRIBUTES", TAUGHT)


_TAUGHT_ONCE: list[Loaded] = []


@pytest.fixture
def seeing(llava_builder: Callable[..., Loaded]) -> Loaded:
    """A tiny model that has learnt to answer about a few drawn pictures, made once: to be read only."""
    if not _TAUGHT_ONCE:
        _TAUGHT_ONCE.append(teach(sharpen(llava_builder(num_layers=5)), TAUGHT, PAIRS))
    return _TAUGHT_ONCE[0]


def swap(loaded: Loaded, batch_size: int = 32, scorers: Sequence[Any] = SWAPS) -> dict[str, dict[str, PartSums]]:
    anatomy = find_anatomy(loaded.model)
    return run_pairs(
        loaded.model, loaded.processor, anatomy, scorers, ignore, count=PAIRS, seed=0, batch_size=batch_size
    )


def test_closed_forms() -> None:
    # Layer 1 alone turns the first pair, layers 0 and 2 share the second; the third is not told apart.
    pairs = Preferences(
        first=np.array([2.0, 1.0, 1.0]),
        second=np.array([-2.0, -3.0, 0.5]),
        at=np.array([[2.0, -2.0, 2.0], [-1.0, 1.0, -1.0], [9.0, 9.0, 9.0]]),
        onward=np.array([[-2.0, -2.0, 2.0], [-3.0, -1.0, -1.0], [9.0, 9.0, 9.0]]),
    )
    assert pairs.known.tolist() == [True, True, False]
    np.testing.assert_allclose(score(token_swap(pairs)), [2 / 8, 4 / 8, 2 / 8])
    np.testing.assert_allclose(score(token_swap_flips(pairs)), [0.5, 0.5, 0.5])
    np.testing.assert_allclose(score(token_swap_onward(pairs)), [2 / 8, 4 / 8, 2 / 8])
    assert token_swap(pairs).counts.sum() == pytest.approx(2)
    assert token_swap_flips(pairs).counts.tolist() == [1, 1, 0]


@pytest.mark.parametrize("reader", [1, 3])
def test_the_layer_through_which_the_picture_passes_is_found(llava_builder: Callable[..., Loaded], reader: int) -> None:
    loaded = sharpen(llava_builder(num_layers=5))
    plant(loaded.model, Blind, spared=(reader,))
    found = swap(teach(loaded, TAUGHT, PAIRS))
    for scorer in SWAPS:
        assert found[scorer.name]
        for parts in found[scorer.name].values():
            np.testing.assert_allclose(score(parts), np.eye(5)[reader], atol=1e-4)


def test_equals_a_plain_pass_with_hooks(seeing: Loaded, tmp_path: Path) -> None:
    found = swap(seeing)
    for name, parts in found["token-swap"].items():
        row = int(np.flatnonzero(parts.counts)[0])
        first, second = plain(seeing, pair_samples(name, row, tmp_path))
        shown = preference(*first[:2])
        unit = parts.counts[row] / (shown - preference(*second[:2]))
        for layer in range(5):
            at = preference(*swapped(seeing, first, second, layer, alone=True))
            onward = preference(*swapped(seeing, first, second, layer, alone=False))
            np.testing.assert_allclose(parts.sums[row, layer], (shown - at) * unit, atol=1e-4)
            assert found["token-swap-flips"][name].sums[row, layer] == (at < 0)
            later = found["token-swap-onward"][name].sums[row, layer:].sum()
            np.testing.assert_allclose(later, (shown - onward) * unit, atol=1e-4)


def plain(loaded: Loaded, own: list[Any]) -> list[tuple[Any, Any, Any]]:
    """Return logits, the batch of both answers, and every layer's input, by one plain pass for each picture."""
    found = []
    for sample in own:
        both = [replace(sample, messages=(sample.messages[0], Message("assistant", other.answer))) for other in own]
        batch = Collator(loaded.processor, 512, train=True)(both)
        states: list[torch.Tensor] = []
        handles = [
            layer.register_forward_pre_hook(partial(_keep, states), with_kwargs=True)
            for layer in decoder_layers(loaded.model)
        ]
        with torch.no_grad():
            logits = loaded.model(**unlabelled(batch), use_cache=False).logits
        for handle in handles:
            handle.remove()
        found.append((logits, batch, states))
    return found


def _keep(states: list[torch.Tensor], module: Any, args: Any, kwargs: Any) -> None:
    states.append(args[0])


def unlabelled(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}


def swapped(loaded: Loaded, first: Any, second: Any, layer: int, alone: bool) -> tuple[Any, Any]:
    """Return logits and batch when the image tokens that `layer` reads are the second picture's."""
    batch = first[1]
    image = (batch["input_ids"] == loaded.model.config.image_token_id)[..., None]
    module = decoder_layers(loaded.model)[layer]
    with torch.no_grad():
        kept = {}

        def enter(module: Any, args: Any, kwargs: Any) -> Any:
            kept["plain"] = module.forward(*args, **kwargs)
            return (torch.where(image, second[2][layer], args[0]), *args[1:]), kwargs

        def leave(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
            return torch.where(image, kept["plain"], output) if alone else output

        handles = [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave, with_kwargs=True),
        ]
        logits = loaded.model(**unlabelled(batch), use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits, batch


def preference(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> float:
    """Return `log p(a) - log p(b)` in float64 from the logits of both answers."""
    log_p = logits.double().log_softmax(-1).numpy()
    labels = batch["labels"].numpy()
    totals = [
        sum(log_p[row, place - 1, token] for place, token in enumerate(labels[row]) if token != -100) for row in (0, 1)
    ]
    return float(totals[0] - totals[1])


def test_shares_from_a_layer_on_add_up_to_the_whole_turn(seeing: Loaded) -> None:
    for parts in swap(seeing)["token-swap-onward"].values():
        np.testing.assert_allclose(score(parts).sum(), 1, atol=1e-4)


def test_batch_size_changes_nothing_and_rows_are_pairs(seeing: Loaded) -> None:
    one, other = swap(seeing, 8), swap(seeing, 3)
    for name, parts in one.items():
        assert parts.keys() == other[name].keys() <= set(TAUGHT)
        for attribute, sums in parts.items():
            assert sums.sums.shape == (PAIRS, 5)
            np.testing.assert_allclose(sums.sums, other[name][attribute].sums, atol=1e-4)
            np.testing.assert_allclose(sums.counts, other[name][attribute].counts, atol=1e-4)


def test_the_onward_swap_runs_only_where_it_is_asked_for(seeing: Loaded) -> None:
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1

    handles = [layer.mlp.register_forward_hook(count) for layer in decoder_layers(seeing.model)]
    costs = []
    for scorers in ([TOKEN_SWAP], [TOKEN_SWAP, TOKEN_SWAP_FLIPS], SWAPS):
        calls[0] = 0
        swap(seeing, scorers=scorers)
        costs.append(calls[0])
    for handle in handles:
        handle.remove()
    proof, plain_passes, single, suffixes = 5 + 10, 2 * 5, 5, 10
    assert costs[0] == costs[1] == proof + plain_passes + single + suffixes
    assert costs[2] == costs[0] + suffixes


def test_a_model_that_does_not_see_is_refused_in_words(tiny_llava: Loaded) -> None:
    tiny_llava.model.model.multi_modal_projector.linear_2.weight.data.zero_()
    with pytest.raises(DataError) as caught:
        run_pairs(
            tiny_llava.model, tiny_llava.processor, find_anatomy(tiny_llava.model), SWAPS, ignore, count=2, seed=0
        )
    assert str(caught.value) == (
        "the model tells none of 4 drawn pairs of pictures apart (colour, count)\n"
        "  allowed: a model that answers simple questions about drawn shapes and words\n"
        "  next:    use another scorer, or a model that is aligned with its vision encoder"
    )


def test_cross_attention_is_refused(tiny_llava: Loaded, family_builder: Callable[[str], tuple[Any, Any]]) -> None:
    model, _ = family_builder("mllama")
    with pytest.raises(ModelError, match="mllama has no image tokens in its sequence"):
        run_pairs(model, tiny_llava.processor, find_anatomy(model), SWAPS, ignore, count=2, seed=0)


def test_analyze_reports_attributes_as_parts(seeing: Loaded) -> None:
    names = [scorer.name for scorer in SWAPS]
    scores = analyze(seeing.model, seeing.processor, [], names, pairs=PAIRS, batch_size=4)
    whole = swap(seeing)
    for name in names:
        entry = scores.of(name)
        assert entry.samples == PAIRS
        for attribute, parts in whole[name].items():
            np.testing.assert_allclose(entry.parts[attribute], score(parts), atol=1e-4)
            assert entry.tokens[attribute] == round(parts.counts.sum())
        np.testing.assert_allclose(entry.values, np.mean(list(entry.parts.values()), axis=0), atol=1e-6)
