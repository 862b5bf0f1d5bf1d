"""Kept hidden states against a forward pass written out by hand, and what is learned from them, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from striate.config import MachineSection
from striate.data.collate import Collator
from striate.data.reading import read_samples
from striate.data.samples import Sample
from striate.models.interventions.hidden_state_tap import HiddenTap
from striate.progress import Silent
from striate.training.caching.hidden_pass import HiddenMaker
from striate.training.caching.hidden_states import HiddenCache, HiddenCollator
from striate.training.caching.tensor_store import MemoryStore
from striate.training.loss import answer_loss

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

LAYER = 2


@pytest.fixture
def samples(pack_dir: Path) -> list[Sample]:
    return read_samples(pack_dir)


def by_hand(model: Any, sample: Sample, collator: Collator) -> torch.Tensor:
    """Return what enters the layer for one sample: embeddings with the projector's rows, then each layer below."""
    [item] = collator.encode_each([sample])
    core, ids = model.model, item.tokens["input_ids"]
    hidden = core.language_model.embed_tokens(ids)
    if item.pictures:
        features = core.vision_tower(item.pictures["pixel_values"].double()).last_hidden_state[:, 1:]
        hidden[ids == model.config.image_token_id] = core.multi_modal_projector(features).flatten(0, 1)
    places = torch.arange(ids.shape[1])[None]
    turns = core.language_model.rotary_emb(hidden, places)
    causal = torch.full((1, 1, ids.shape[1], ids.shape[1]), float("-inf"), dtype=torch.float64).triu(1)
    for layer in core.language_model.layers[:LAYER]:
        out = layer(hidden, attention_mask=causal, position_ids=places, position_embeddings=turns)
        hidden = out[0] if isinstance(out, tuple) else out
    return hidden[0]


def gradients(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the answer loss and its gradients."""
    model.zero_grad()
    loss = answer_loss(model, batch)
    loss.backward()
    return loss.detach(), {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def test_states_losses_and_gradients(tiny_llava: Loaded, samples: list[Sample]) -> None:
    model = tiny_llava.model.double().requires_grad_(False)
    model.model.language_model.layers[LAYER:].requires_grad_(True)
    collator = Collator(tiny_llava.processor, 96, train=True)
    tap, store = HiddenTap(model, LAYER), MemoryStore()
    machine = MachineSection(micro_batch=5)
    maker = HiddenMaker(tap, samples, collator, machine, False, torch.float64, 32, Silent())
    items = maker.run(store.__setitem__, None)
    assert len(items) == len(samples)
    with torch.no_grad():
        for index, sample in enumerate(maker.samples):
            torch.testing.assert_close(store.get(str(index)), by_hand(model, sample, collator), rtol=1e-9, atol=1e-9)
    known = {sample: (item, str(index)) for index, (sample, item) in enumerate(zip(samples, items, strict=True))}
    cache = HiddenCache(tap, HiddenCollator(collator, known, store))
    few = [samples[index] for index in (0, 5, 12)]
    loss, wanted = gradients(model, collator(few))
    with cache.serving(cache.collator(few)) as batch:
        kept_loss, found = gradients(model, batch)
    assert abs(float(kept_loss - loss)) < 1e-10
    assert found.keys() == wanted.keys()
    assert all(name.split("layers.")[1][0] in "23" for name in wanted)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-11, msg=name)


def test_like_lengths_go_together(tiny_llava: Loaded, samples: list[Sample]) -> None:
    collator = Collator(tiny_llava.processor, 96, train=True)
    shapes: list[tuple[int, int]] = []

    class Tap:
        layer, model = 0, torch.nn.Linear(1, 1)

        def states(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            shapes.append(tuple(batch["input_ids"].shape))  # type: ignore[arg-type]
            return torch.zeros(*batch["input_ids"].shape, 1)

    tap: Any = Tap()
    lengths = [item.length for item in collator.encode_each(samples)]
    for machine, packing in ((MachineSection(micro_batch=4), False), (MachineSection(pack_tokens=120), True)):
        shapes.clear()
        HiddenMaker(tap, samples, collator, machine, packing, None, 1, Silent()).run(lambda *_: None, None)
        slots = sum(rows * length for rows, length in shapes)
        assert sum(lengths) <= slots <= sum(lengths) / (1 - 0.125)
        assert all(rows * length <= 120 for rows, length in shapes) if packing else max(shapes)[0] <= 4
