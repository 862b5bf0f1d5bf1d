"""Every shape of per-layer fact in a config follows a removal, or is refused."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from striate.errors import ModelError
from striate.models.surgery.config_edits import config_edits

Batch = dict[str, Any]


class _Config:
    attribute_map: ClassVar[dict[str, str]] = {"num_hidden_layers": "n_layers"}
    num_hidden_layers = 6

    def __init__(self, **fields: Any) -> None:
        vars(self).update(fields)


@pytest.mark.parametrize(
    ("fields", "edits"),
    [
        ({"layer_types": list("abcdef")}, {"layer_types": list("acdf")}),
        ({"layers_block_type": tuple("abcdef")}, {"layers_block_type": tuple("acdf")}),
        ({"some_new_layer_names": list("abcdef")}, {"some_new_layer_names": list("acdf")}),
        ({"no_rope_layers": [1, 1, 1, 0, 1, 0]}, {"no_rope_layers": [1, 1, 0, 0]}),
        ({"mlp_only_layers": [0, 1, 5]}, {"mlp_only_layers": [0, 3]}),
        ({"moe_layers": [3, 4]}, {"moe_layers": [2]}),
        ({"new_layer_ids": [0, 1, 2, 3, 4, 5]}, {"new_layer_ids": [0, 1, 2, 3]}),
        ({"swa_layer_idxs": (1, 2, 4)}, {"swa_layer_idxs": (1,)}),
        ({"ple_layer_ids": [1, 3, 5]}, {"ple_layer_ids": [1, 2]}),
        ({"kv_source_layers": [0, 0, 2, 3, 3, 3]}, {"kv_source_layers": [0, 1, 2, 2]}),
        ({"spatial_target_layers": [3, 5]}, {"spatial_target_layers": [2, 3]}),
        ({"deepstack_layer_map": [(9, 2), (5, 0)]}, {"deepstack_layer_map": [(9, 1), (5, 0)]}),
        ({"activation_sparsity": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]}, {"activation_sparsity": [0.9, 0.7, 0.6, 0.4]}),
        ({"num_kv_shared_layers": 2}, {"num_kv_shared_layers": 1}),
        (
            {"num_kv_shared_layers": 3, "layer_types": list("aabbab")},
            {"num_kv_shared_layers": 2, "layer_types": list("abbb")},
        ),
        (
            {"indexer_types": ["full", "shared", "full", "shared", "shared", "full"]},
            {"indexer_types": ["full", "full", "shared", "full"]},
        ),
        ({"first_k_dense_replace": 3}, {"first_k_dense_replace": 2}),
        ({"max_window_layers": 28}, {}),
        ({"max_window_layers": 5}, {"max_window_layers": 3}),
        ({"layer_scales": {"0": 1.0, "1": 2.0, "5": 3.0}}, {"layer_scales": {"0": 1.0, "3": 3.0}}),
        ({"layer_scales": {2: 1.0, 4: 2.0}}, {"layer_scales": {1: 1.0}}),
        ({"num_kv_shared_layers": 0, "vision_feature_layer": [-2, -1], "mtp_layer_types": ["a"]}, {}),
        ({"eos_token_id": [1, 2, 3, 4, 5, 6], "layer_norm_eps": 1e-5, "use_layerscale": True}, {}),
    ],
)
def test_every_shape_of_layer_fact_follows(fields: Batch, edits: Batch) -> None:
    assert config_edits(_Config(**fields), [0, 2, 3, 5], 6) == {**edits, "n_layers": 4}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"num_kv_shared_layers": 1}, "layer 5 reads keys and values of layer 4 (num_kv_shared_layers=1)"),
        ({"deepstack_layer_map": [(5, 4)]}, "features of the picture enter there (deepstack_layer_map=[(5, 4)])"),
        ({"layer_types": ["a", "b"]}, "the config field layer_types=['a', 'b'] speaks of layers"),
        ({"kv_source_layers": [0, 1, 1, 3, 3, 4]}, "layer 2, 5 reads keys and values of layer 1, 4 (kv_source_layers="),
        (
            {"indexer_types": ["full", "full", "shared"] * 2},
            "layer 2 reads the tokens that layer 1 selects (indexer_types)",
        ),
        ({"layer_widths": [4, 2]}, "the config field layer_widths=[4, 2] speaks of layers in a way that"),
        ({"cross_attention_layers": [1, 4]}, "they are the only ones that look at the picture"),
    ],
)
def test_facts_that_cannot_follow_are_refused(fields: Batch, text: str) -> None:
    with pytest.raises(ModelError) as caught:
        config_edits(_Config(**fields), [0, 2, 3, 5], 6)
    assert f"these layers can't be removed: {text}" in str(caught.value)
