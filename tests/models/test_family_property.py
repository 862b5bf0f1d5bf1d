"""Any random set of layers removed from any family with per-layer lists keeps the invariants, or changes nothing."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from family_matrix import logits_of, skipping
from family_needs import needs
from family_zoo import NUM_LAYERS, build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from striate.errors import ModelError
from striate.models.structure.anatomy import decoder_layers, find_anatomy
from striate.models.structure.decoder_stack import decoder_config, depth_field
from striate.models.surgery.config_edits import config_edits
from striate.models.surgery.remove_layers import remove_layers

FAMILIES = [
    "gemma3",
    "gemma4",
    "granite4_vision",
    "idefics",
    "lfm2_vl",
    "llama4",
    "mistral_large4",
    "mllama",
    "nemotron_h_omni",
    "qwen3_5_moe",
]
_built = functools.cache(build)


def _lists(config: Any) -> dict[str, list[Any]]:
    fields = {name: value for name, value in vars(config).items() if "token" not in name}
    return {
        name: list(value)
        for name, value in fields.items()
        if isinstance(value, list | tuple) and len(value) == NUM_LAYERS
    }


@pytest.mark.parametrize("model_type", FAMILIES)
@given(remove=st.sets(st.integers(0, NUM_LAYERS - 1), min_size=1, max_size=NUM_LAYERS - 1))
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_set_of_removed_layers_keeps_the_invariants(model_type: str, remove: set[int]) -> None:
    needs(model_type)
    torch.set_num_threads(1)
    try:
        whole, inputs = _built(model_type)
    except AttributeError as error:
        pytest.skip(f"its tiny config does not build in this transformers: {error}")
    model = copy.deepcopy(whole)
    kept = [layer for layer in range(NUM_LAYERS) if layer not in remove]
    weights = [dict(decoder_layers(model)[layer].named_parameters()) for layer in kept]
    stored = model.config.to_json_string()
    refused = ""
    mapping: dict[int, int] = {}
    try:
        mapping = remove_layers(model, sorted(remove))
    except ModelError as error:
        refused = str(error)
    if refused:
        assert "can't be removed: " in refused
        assert model.config.to_json_string() == stored
        assert len(decoder_layers(model)) == NUM_LAYERS
        assert torch.equal(logits_of(model, inputs), logits_of(whole, inputs))
        return
    assert mapping == {old: new for new, old in enumerate(kept)}
    text = decoder_config(model)
    assert find_anatomy(model).num_layers == len(decoder_layers(model)) == getattr(text, depth_field(text)) == len(kept)
    for number, layer in enumerate(decoder_layers(model)):
        assert {getattr(module, "layer_idx", number) for module in layer.modules()} == {number}
        assert all(tensor is weights[number][name] for name, tensor in layer.named_parameters())
    expected = config_edits(decoder_config(whole), kept, NUM_LAYERS)
    for name, values in _lists(decoder_config(whole)).items():
        assert list(getattr(text, name)) == list(expected.get(name, values))
        assert len(getattr(text, name)) == len(kept)
    assert type(model.config).from_dict(model.config.to_dict()).to_dict() == model.config.to_dict()
    assert torch.equal(logits_of(model, inputs), logits_of(skipping(whole, sorted(remove)), inputs))
