"""Every part of an LVLM is found where it is, in every family, and text-only models are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from family_zoo import build_model
from torch import nn
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

from striate.artifacts import Region
from striate.errors import ModelError
from striate.models.io.load import Loaded
from striate.models.structure.anatomy import (
    check_decoder_only,
    component_of,
    decoder_layers,
    find_anatomy,
    layer_of,
    unwrap,
)
from striate.models.structure.decoder_stack import find_decoder
from striate.models.structure.families import DEFAULT, FAMILIES, family_of
from striate.models.trainable.apply import lora_config

Built = tuple[Any, dict[str, Any]]


def _text_only() -> LlamaForCausalLM:
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))


def test_every_part_of_each_family_is_found(family: Built) -> None:
    model, _ = family
    anatomy = find_anatomy(model)
    modules = dict(model.named_modules())
    assert anatomy.model_type == model.config.model_type
    assert anatomy.num_layers == 6
    assert modules[anatomy.layers_name] is decoder_layers(model)
    assert len(modules[anatomy.layers_name]) == 6
    assert anatomy.image_token_ids == (60,)
    for name in (*anatomy.vision_names, *anatomy.projector_names, *anatomy.embedding_names, *anatomy.head_names):
        assert name in modules


def test_the_decoder_is_not_the_first_module_list(family: Built) -> None:
    model, _ = family
    first = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    assert decoder_layers(model) is not first


def test_each_parameter_has_one_component_and_all_components_occur(family: Built) -> None:
    model, _ = family
    anatomy = find_anatomy(model)
    components = {name: component_of(anatomy, name) for name, _ in model.named_parameters(remove_duplicate=False)}
    assert set(components.values()) >= {"vision encoder", "projector", "decoder layer", "embeddings", "LM head"}
    for name, component in components.items():
        assert (layer_of(anatomy, name) is not None) == (component == "decoder layer")
    counted = {layer_of(anatomy, name) for name in components} - {None}
    assert counted == set(range(6))


def test_a_projector_gets_language_hidden_size(family: Built) -> None:
    model, _ = family
    anatomy = find_anatomy(model)
    hidden = model.config.get_text_config().hidden_size
    shapes = [
        tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if component_of(anatomy, name) == "projector"
    ]
    assert any(hidden in shape for shape in shapes)


def test_qwens_merger_is_the_projector_although_it_lies_in_the_vision_encoder(
    family_builder: Callable[[str], Built],
) -> None:
    model, _ = family_builder("qwen2_5_vl")
    anatomy = find_anatomy(model)
    assert component_of(anatomy, "model.visual.merger.mlp.0.weight") == "projector"
    assert component_of(anatomy, "model.visual.blocks.0.attn.qkv.weight") == "vision encoder"


def test_same_numbers_in_the_vision_encoder_are_no_decoder_layers(tiny_llava: Loaded) -> None:
    anatomy = find_anatomy(tiny_llava.model)
    assert layer_of(anatomy, "model.vision_tower.encoder.layers.1.self_attn.q_proj.weight") is None
    assert layer_of(anatomy, "model.language_model.layers.1.self_attn.q_proj.weight") == 1
    assert layer_of(anatomy, "model.language_model.layers.13.self_attn.q_proj.weight") == 13


def test_wrappers_are_seen_through(tiny_llava: Loaded) -> None:
    import peft

    plain = find_anatomy(tiny_llava.model)
    region = Region(layers=(1,), num_layers=4, spec="ids:1")
    wrapped = peft.get_peft_model(tiny_llava.model, lora_config(tiny_llava.model, region, r=2))
    assert unwrap(wrapped) is tiny_llava.model
    assert unwrap(nn.DataParallel(wrapped)) is tiny_llava.model
    assert unwrap(torch.compile(tiny_llava.model)) is tiny_llava.model
    assert find_anatomy(wrapped) == plain
    name = "base_model.model.model.language_model.layers.1.self_attn.q_proj.lora_A.default.weight"
    assert (component_of(plain, name), layer_of(plain, name)) == ("decoder layer", 1)
    copy = "base_model.model.model.multi_modal_projector.modules_to_save.default.linear_1.weight"
    assert component_of(plain, copy) == "projector"


def test_a_stack_one_step_deeper_is_found() -> None:
    inner = _text_only()
    outer = SimpleNamespace(get_decoder=lambda: inner, _modules={})
    assert find_decoder(outer) is inner.model


def test_a_text_only_model_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        find_anatomy(_text_only())
    assert str(caught.value) == (
        "LlamaForCausalLM is a text-only model: it has no vision encoder\n"
        "  allowed: a vision-language model such as LLaVA, Qwen2.5-VL, Gemma 3 or SmolVLM\n"
        "  next:    choose another model; see `striate ls families`"
    )


def test_a_config_of_another_depth_is_refused(tiny_llava: Loaded) -> None:
    tiny_llava.model.config.text_config.num_hidden_layers = 7
    with pytest.raises(ModelError, match="says 7 decoder layers, the model has 4"):
        find_anatomy(tiny_llava.model)


def test_a_model_without_a_known_projector_is_refused(tiny_llava: Loaded) -> None:
    del tiny_llava.model.model.multi_modal_projector
    with pytest.raises(ModelError, match=r"no projector found in LlavaForConditionalGeneration \(model type 'llava'\)"):
        find_anatomy(tiny_llava.model)


def test_an_encoder_decoder_says_that_it_is_one(tiny_llava: Loaded) -> None:
    assert not find_anatomy(tiny_llava.model).encoder_decoder
    found = find_anatomy(build_model("florence2"))
    assert (found.encoder_decoder, found.layers_name) == (True, "model.language_model.decoder.layers")


def test_a_model_without_a_decoder_stack_is_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="Linear has no decoder stack"):
        decoder_layers(model)


def test_every_row_names_a_model_type_of_transformers() -> None:
    known = {config.model_type for config in AutoModelForImageTextToText._model_mapping}
    unknown = [family.model_type for family in FAMILIES if family.model_type not in known]
    # Older versions of transformers lack the newest families.
    assert unknown == [] or tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23)
    assert len({family.model_type for family in FAMILIES}) == len(FAMILIES)
    assert family_of("llava").title == "LLaVA 1.5"
    assert family_of("something_new") is DEFAULT


def test_a_family_without_a_row_is_found_by_the_usual_names(
    tiny_llava: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("striate.models.structure.families.FAMILIES", ())
    assert find_anatomy(tiny_llava.model).projector_names == ("model.multi_modal_projector",)


def test_encoder_decoders_are_refused_where_prompts_are_made(tiny_llava: Loaded) -> None:
    anatomy = find_anatomy(tiny_llava.model)
    check_decoder_only(anatomy)
    with pytest.raises(ModelError, match="llava is an encoder-decoder: its prompts are not conversations"):
        check_decoder_only(dataclasses.replace(anatomy, encoder_decoder=True))
