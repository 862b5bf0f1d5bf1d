"""Traps of choosing and removing layers, each on the family that has it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from family_matrix import REGION, logits_of, skipping
from family_needs import needs
from family_zoo import NUM_LAYERS, build, build_model

from striate.errors import ModelError
from striate.models.io.save import save_model
from striate.models.structure.anatomy import decoder_layers, find_anatomy, layer_of
from striate.models.structure.decoder_stack import find_decoder
from striate.models.surgery.remove_layers import remove_layers
from striate.models.surgery.roundtrip_check import self_test
from striate.models.trainable.apply import apply_region, lora_config
from striate.scorers import SCORERS
from striate.scorers.streaming.masks import token_masks
from striate.scorers.streaming.stream import LayerStream


def _adapters(model: Any) -> list[str]:
    return [name for name, _ in model.named_parameters() if ".lora_A." in name]


@pytest.mark.parametrize("model_type", ["llava", "gemma3", "internvl"])
def test_layers_to_transform_also_adapts_vision_blocks_and_a_region_does_not(model_type: str) -> None:
    model = build_model(model_type)
    anatomy = find_anatomy(model)
    naive = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], layers_to_transform=list(REGION.layers))
    outside = [name for name in _adapters(peft.get_peft_model(copy.deepcopy(model), naive)) if ".vision_" in name]
    assert outside
    wrapped = peft.get_peft_model(model, lora_config(model, REGION, r=2))
    assert {layer_of(anatomy, name) for name in _adapters(wrapped)} == set(REGION.layers)


def test_the_first_list_of_modules_is_the_vision_encoder() -> None:
    model = build_model("llava")
    first = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    assert first is not decoder_layers(model)
    assert getattr(model.config, "num_hidden_layers", None) is None
    assert find_anatomy(model).num_layers == NUM_LAYERS


def test_the_accessor_of_llama4_answers_with_a_causal_model() -> None:
    model = build_model("llama4")
    assert not hasattr(model.get_decoder(), "layers")
    assert find_decoder(model) is model.language_model.model


def test_peft_takes_plain_names_for_experts_of_every_layer() -> None:
    model = build_model("glm4v_moe")
    assert any(name.endswith(".1.mlp.gate_proj") or ".shared_experts." in name for name, _ in model.named_modules())
    config = lora_config(model, REGION, r=2)
    kinds = {name.rpartition(".")[2] for name in config.target_modules}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj"}
    wrapped = peft.get_peft_model(model, config)
    apply_region(wrapped, REGION, "lora")
    assert not [name for name in _adapters(wrapped) if ".experts." in name]


def test_a_router_that_returns_two_tensors_gets_no_adapter() -> None:
    needs("llama4")
    names = lora_config(build_model("llama4"), REGION, r=2).target_modules
    assert names
    assert not [name for name in names if name.endswith(".router")]


def test_a_choice_of_the_top_k_is_not_trained() -> None:
    needs("mistral_large4")
    model = build_model("mistral_large4")
    apply_region(model, REGION)
    opened = [name for name, tensor in model.named_parameters() if tensor.requires_grad]
    assert any(".indexer." in name for name, _ in model.named_parameters())
    assert not [name for name in opened if ".indexer." in name]


def test_deleting_layers_by_hand_does_not_survive_a_reload(tmp_path: Path) -> None:
    model, inputs = build("gemma3")
    del decoder_layers(model)[1]
    model.save_pretrained(tmp_path / "by_hand")
    with pytest.raises(ModelError, match=r"lacks \d+ tensors"):
        self_test(model, tmp_path / "by_hand", inputs)


def test_a_config_edited_without_its_lists_uses_wrong_masks() -> None:
    model, inputs = build("gemma3")
    expected = logits_of(skipping(model, [5]), inputs)
    by_hand = copy.deepcopy(model)
    del decoder_layers(by_hand)[5]
    by_hand.config.text_config.num_hidden_layers = NUM_LAYERS - 1
    assert not torch.allclose(logits_of(by_hand, inputs), expected, atol=1e-3)
    remove_layers(model, [5])
    assert torch.equal(logits_of(model, inputs), expected)


def test_a_layer_whose_keys_and_values_others_read_stays() -> None:
    needs("gemma4")
    model = build_model("gemma4")
    assert model.config.text_config.num_kv_shared_layers == 2
    with pytest.raises(ModelError, match=r"layer 6 reads keys and values of layer 5 \(num_kv_shared_layers=2\)"):
        remove_layers(model, [5])
    remove_layers(model, [6])
    assert model.config.text_config.num_kv_shared_layers == 1


def test_embeddings_of_single_layers_are_cut_with_the_stack(tmp_path: Path) -> None:
    needs("gemma4")
    model, inputs = build("gemma4")
    before = model.get_parameter("model.language_model.embed_tokens_per_layer.weight").detach().clone()
    expected = logits_of(skipping(model, [1, 6]), inputs)
    remove_layers(model, [1, 6])
    after = model.get_parameter("model.language_model.embed_tokens_per_layer.weight")
    width = before.shape[1] // NUM_LAYERS
    assert after.shape == (before.shape[0], width * 6)
    assert torch.equal(after[:, width : 2 * width], before[:, 2 * width : 3 * width])
    assert torch.equal(logits_of(model, inputs), expected)
    save_model(model, None, tmp_path / "small")
    assert self_test(model, tmp_path / "small", inputs).max_logit_difference == 0


def test_a_last_layer_that_the_config_forces_stays() -> None:
    needs("gemma4")
    with pytest.raises(ModelError, match=r"a model of the smaller depth does not build .*'full_attention'"):
        remove_layers(build_model("gemma4_unified"), [7])


def test_settings_that_single_layers_override_follow() -> None:
    needs("gemma4_unified")
    model = build_model("gemma4_unified")
    remove_layers(model, [1, 4])
    overridden = {int(layer) for layer in model.config.text_config.to_dict()["per_layer_config"]}
    assert overridden == {1, 5}
    heads = [layer.self_attn.head_dim for layer in decoder_layers(model)]
    assert heads == [16, 32, 16, 16, 16, 32]


def test_lists_that_go_with_the_stack_are_cut_too() -> None:
    model = build_model("idefics")
    blocks = list(find_decoder(model).gated_cross_attn_layers)
    assert find_anatomy(model).companion_names == ("model.gated_cross_attn_layers",)
    remove_layers(model, [0, 5])
    assert list(find_decoder(model).gated_cross_attn_layers) == [blocks[layer] for layer in (1, 2, 3, 4, 6, 7)]


def test_layers_that_take_features_of_the_picture_stay() -> None:
    try:
        model = build_model("granite4_vision")
    except (AttributeError, KeyError) as error:
        pytest.skip(f"its tiny config does not build in this transformers: {error}")
    with pytest.raises(ModelError, match=r"features of the picture enter there \(spatial_target_layers="):
        remove_layers(model, [5])
    remove_layers(model, [1, 4])
    assert list(model.config.spatial_target_layers) == [1, 2, 3, 5]


def test_a_block_of_layers_can_not_be_cut() -> None:
    needs("inkling2")
    with pytest.raises(ModelError, match="is_block_boundary of layer 6 is True and would be False on reload"):
        remove_layers(build_model("inkling2"), [1])


def test_a_layer_whose_choice_of_tokens_others_read_stays() -> None:
    needs("hy_v4_vl")
    model, inputs = build("hy_v4_vl")
    with pytest.raises(ModelError, match=r"layer 5 reads the tokens that layer 4 selects \(indexer_types\)"):
        remove_layers(model, [4])
    expected = logits_of(skipping(model, [4, 5]), inputs)
    remove_layers(model, [4, 5])
    assert torch.equal(logits_of(model, inputs), expected)


def test_layers_that_run_several_times_stay_and_are_not_scored() -> None:
    needs("inkling2_loop")
    model, inputs = build("inkling2_loop")
    for layer in range(1, 7):
        with pytest.raises(ModelError, match="can't be removed"):
            remove_layers(model, [layer])
    masks = token_masks({**inputs, "labels": inputs["input_ids"]}, find_anatomy(model))
    with (
        LayerStream(decoder_layers(model), [SCORERS.get("block-influence")]) as stream,
        pytest.raises(ModelError, match="layer 2 did not run exactly once, in order"),
        stream.batch(masks),
    ):
        model(**inputs)
    expected = logits_of(skipping(model, [7]), inputs)
    remove_layers(model, [7])
    assert torch.equal(logits_of(model, inputs), expected)
