"""A planted truth is found: only some layers move image tokens, or let text read them, and those come first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from planted_kit import Still, plant

from striate.data.reading import read_samples
from striate.models.structure.anatomy import decoder_layers
from striate.stages.analyze import analyze

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

LAYERS = 6
PLANTED = (1, 4)
IMAGE_PARTS = ["block-influence", "modality-block-influence", "relative-magnitude", "linear-cka", "matrix-entropy"]


def top(values: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(sorted(np.argsort(values)[-len(PLANTED) :].tolist()))


@pytest.mark.parametrize("seed", [0, 1])
def test_layers_that_alone_move_image_tokens_come_first(
    llava_builder: Callable[..., Loaded], pack_dir: Path, seed: int
) -> None:
    loaded = llava_builder(num_layers=LAYERS, seed=seed)
    plant(loaded.model, Still, PLANTED)
    samples = read_samples(pack_dir / "train.json")
    scores = analyze(loaded.model, loaded.processor, samples, IMAGE_PARTS)
    for entry in scores.scorers:
        image = entry.parts["image"]
        assert top(image) == PLANTED, entry.scorer
        assert all(image[layer] == 0 for layer in range(LAYERS) if layer not in PLANTED), entry.scorer
        assert all(entry.part_low["image"][layer] > 0 for layer in PLANTED), entry.scorer


def test_whole_scores_rank_them_first_where_the_other_layers_move_text_by_little(
    llava_builder: Callable[..., Loaded], pack_dir: Path
) -> None:
    loaded = llava_builder(num_layers=LAYERS)
    for index, layer in enumerate(decoder_layers(loaded.model)):
        if index not in PLANTED:
            layer.self_attn.o_proj.weight.data.mul_(0.05)
            layer.mlp.down_proj.weight.data.mul_(0.05)
    plant(loaded.model, Still, PLANTED)
    samples = read_samples(pack_dir / "train.json")
    for entry in analyze(loaded.model, loaded.processor, samples, IMAGE_PARTS).scorers:
        assert top(entry.values) == PLANTED, entry.scorer


def plant_readers(model: Any, readers: tuple[int, ...]) -> None:
    """Let text look at image tokens in `readers` only, by weights: channel 0 tells image tokens (-1) from text (+1)."""
    model.get_input_embeddings().weight.data[:, 0] = 1
    model.model.multi_modal_projector.linear_2.weight.data[0] = 0
    model.model.multi_modal_projector.linear_2.bias.data[0] = -1
    for index, layer in enumerate(decoder_layers(model)):
        attention, width = layer.self_attn, layer.self_attn.head_dim
        attention.o_proj.weight.data[0] = 0
        layer.mlp.down_proj.weight.data[0] = 0
        for projection, sign in ((attention.q_proj, 1.0), (attention.k_proj, -1.0 if index in readers else 1.0)):
            projection.weight.data.zero_()
            # The slowest rotary channel of every head: position hardly turns it.
            projection.weight.data[width // 2 - 1 :: width, 0] = sign * 20


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_layers_whose_text_looks_at_the_picture_come_first_by_image_attention(
    llava_builder: Callable[..., Loaded], pack_dir: Path, implementation: str
) -> None:
    loaded = llava_builder(num_layers=LAYERS)
    with torch.no_grad():
        plant_readers(loaded.model, PLANTED)
    loaded.model.set_attn_implementation(implementation)
    samples = read_samples(pack_dir / "train.json")
    found = analyze(loaded.model, loaded.processor, samples, ["image-attention"]).of("image-attention")
    assert top(found.values) == PLANTED
    assert all(found.values[layer] > 0.95 for layer in PLANTED)
    assert all(found.values[layer] < 0.05 for layer in range(LAYERS) if layer not in PLANTED)
    assert all(0 <= low <= high <= 1 + 1e-5 for low, high in zip(found.low, found.high, strict=True))
