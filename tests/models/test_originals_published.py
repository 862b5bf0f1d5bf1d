"""The published models: parameter counts from configs, formulas and docs; names of their tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from published_models import PUBLISHED, published_model

from striate.models.convert.legacy.names import llava_name, plain_name
from striate.models.convert.legacy.tower import TOWERS


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.name)
def test_published_models_have_their_parameters(published: Any) -> None:
    model = published_model(published)
    assert sum(tensor.numel() for tensor in model.parameters()) == published.parameters
    text = sum(tensor.numel() for tensor in model.model.language_model.parameters()) + model.lm_head.weight.numel()
    assert text == published.language_model
    layers = 40 if "13B" in published.name else 32
    assert len(model.model.language_model.layers) == layers
    assert model.config.image_seq_length == (576 if "LLaVA" in published.name else 729)
    assert all(tensor.device.type == "meta" for tensor in model.parameters())


def test_parameter_counts_follow_from_the_formulas() -> None:
    """The arithmetic of docs/original-checkpoints.md, from the configs alone."""
    for published in PUBLISHED:
        config, tower = published.config, TOWERS[published.config["mm_vision_tower"]]
        d, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
        keys = d * config["num_key_value_heads"] // config["num_attention_heads"]
        layer = 2 * d * d + 2 * d * keys + 3 * d * inner + 2 * d
        assert published.language_model == config["num_hidden_layers"] * layer + 2 * vocabulary * d + d
        v = tower["hidden_size"]
        projector = v * d + d + d * d + d
        assert published.parameters == published.language_model + projector + _tower_parameters(tower)


def _tower_parameters(tower: Any) -> int:
    v, inner, layers = tower["hidden_size"], tower["intermediate_size"], tower["num_hidden_layers"]
    patches = (tower["image_size"] // tower["patch_size"]) ** 2
    layer = 4 * (v * v + v) + 2 * v * inner + inner + v + 4 * v
    pixels = 3 * tower["patch_size"] ** 2 * v
    if tower["model_type"] == "clip_vision_model":
        return layers * layer + pixels + v + (patches + 1) * v + 4 * v
    pooling = v + 4 * (v * v + v) + 2 * v + 2 * v * inner + inner + v
    return layers * layer + pixels + v + patches * v + 2 * v + pooling


def test_names() -> None:
    assert llava_name("model.mm_projector.2.bias") == "multi_modal_projector.linear_2.bias"
    assert llava_name("model.mm_projector.1.weight") is None
    assert llava_name("model.mm_projector.weight") is None
    assert llava_name("model.image_newline") is None
    assert llava_name("lm_head.weight") == "language_model.lm_head.weight"
    tower = "model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias"
    assert llava_name(tower) == "vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias"
    assert plain_name("base_model.model.model.mm_projector.0.bias") == "model.mm_projector.0.bias"
    assert plain_name("module.base_model.model.model.layers.0.x") == "model.layers.0.x"


def test_the_docs_say_these_numbers() -> None:
    text = (Path(__file__).parents[2] / "docs" / "original-checkpoints.md").read_text(encoding="utf-8")
    for published in PUBLISHED:
        tower = _tower_parameters(TOWERS[published.config["mm_vision_tower"]])
        projector = published.parameters - published.language_model - tower
        counts = (published.language_model, projector, tower, published.parameters)
        assert f"| {published.name} | " + " | ".join(f"{count:,}" for count in counts) + " |\n" in text
        assert text.count(f"{published.language_model:,}") == 2
