"""A model without some of its layers equals one that skips them, before and after a reload."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from striate.artifacts import Region
from striate.errors import ModelError
from striate.models.io.load import Loaded
from striate.models.io.save import save_model
from striate.models.structure.anatomy import decoder_layers, find_anatomy
from striate.models.surgery.remove_layers import remove_layers
from striate.models.surgery.roundtrip_check import self_test
from striate.models.trainable.apply import lora_config

Batch = dict[str, Any]
Built = tuple[Any, Batch]


def _logits(model: Any, inputs: Batch) -> torch.Tensor:
    with torch.inference_mode():
        return model(**inputs, use_cache=False).logits


def _skipping(model: Any, layers: Sequence[int]) -> Any:
    """The same model with some layers turned into the identity by hooks: an independent way to leave them out."""

    def keep_input(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Batch, output: Any) -> Any:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    for layer in layers:
        decoder_layers(model)[layer].register_forward_hook(keep_input, with_kwargs=True)
    return model


REMOVED = {"qwen3_vl": [3, 5], "mllama": [0, 4]}


@pytest.fixture
def removed(family: Built) -> list[int]:
    return REMOVED.get(family[0].config.model_type, [1, 4])


def test_a_family_without_two_layers_equals_one_that_skips_them(family: Built, removed: list[int]) -> None:
    model, inputs = family
    expected = _logits(_skipping(copy.deepcopy(model), removed), inputs)
    before = _logits(model, inputs)
    mapping = remove_layers(model, removed)
    kept = [layer for layer in range(6) if layer not in removed]
    assert mapping == dict(zip(kept, range(4), strict=True))
    after = _logits(model, inputs)
    assert torch.equal(after, expected)
    assert not torch.allclose(after, before, atol=1e-3)


def test_a_smaller_family_reloads_to_the_bit_and_answers_with_and_without_cache(
    family: Built, removed: list[int], tmp_path: Path
) -> None:
    model, inputs = family
    remove_layers(model, removed)
    save_model(model, None, tmp_path / "small")
    result = self_test(model, tmp_path / "small", inputs)
    assert (result.prompts, result.max_logit_difference, result.cached_equals_uncached) == (2, 0.0, True)
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "small").eval()
    assert torch.equal(_logits(plain, inputs), _logits(model, inputs))
    assert find_anatomy(plain).num_layers == 4


def test_each_kept_layer_knows_its_new_number_and_its_own_kind(family: Built, removed: list[int]) -> None:
    model, _ = family
    text = model.config.get_text_config()
    kinds = list(getattr(text, "layer_types", None) or [])
    remove_layers(model, removed)
    assert len(decoder_layers(model)) == text.num_hidden_layers == 4
    for number, layer in enumerate(decoder_layers(model)):
        numbers = {module.layer_idx for module in layer.modules() if hasattr(module, "layer_idx")}
        assert numbers == {number}
    if kinds:
        assert list(text.layer_types) == [kind for layer, kind in enumerate(kinds) if layer not in removed]


def test_removing_nothing_is_the_identity(family: Built) -> None:
    model, inputs = family
    config, weights = model.config.to_json_string(), {name: id(tensor) for name, tensor in model.named_parameters()}
    before = _logits(model, inputs)
    assert remove_layers(model, []) == {layer: layer for layer in range(6)}
    assert model.config.to_json_string() == config
    assert {name: id(tensor) for name, tensor in model.named_parameters()} == weights
    assert torch.equal(_logits(model, inputs), before)


def test_removing_twice_equals_removing_at_once(family_builder: Callable[[str], Built]) -> None:
    (one, inputs), (two, _) = family_builder("gemma3"), family_builder("gemma3")
    remove_layers(one, [1, 2, 4])
    first = remove_layers(two, [2])
    remove_layers(two, [first[1], first[4]])
    assert torch.equal(_logits(one, inputs), _logits(two, inputs))
    assert one.config.to_json_string() == two.config.to_json_string()


def test_gemma_keeps_its_mask_per_layer(family_builder: Callable[[str], Built]) -> None:
    # Removing layers 0 and 1 leaves full, sliding, sliding, full: a stale list would give each another mask.
    model, inputs = family_builder("gemma3")
    expected = _logits(_skipping(copy.deepcopy(model), [0, 1]), inputs)
    remove_layers(model, [0, 1])
    full, sliding = "full_attention", "sliding_attention"
    assert model.config.text_config.layer_types == [full, sliding, sliding, full]
    assert torch.equal(_logits(model, inputs), expected)
    stale = copy.deepcopy(model)
    stale.model.language_model.config.layer_types = [sliding, sliding, full, sliding]
    assert not torch.allclose(_logits(stale, inputs), expected, atol=1e-3)


def test_qwen_window_lists_and_counts_follow(family_builder: Callable[[str], Built]) -> None:
    model, _ = family_builder("qwen2_5_vl")
    remove_layers(model, [0, 4])
    text = model.config.text_config
    assert text.layer_types == ["full_attention"] * 2 + ["sliding_attention"] * 2
    assert (text.max_window_layers, text.num_hidden_layers) == (2, 4)


def test_one_kind_of_layer_may_go_altogether(family_builder: Callable[[str], Built], tmp_path: Path) -> None:
    model, inputs = family_builder("gemma3")
    remove_layers(model, [2, 5])
    assert set(model.config.text_config.layer_types) == {"sliding_attention"}
    save_model(model, None, tmp_path / "small")
    assert self_test(model, tmp_path / "small", inputs).max_logit_difference == 0


def test_a_flat_config_follows(family_builder: Callable[[str], Built], tmp_path: Path) -> None:
    model, inputs = family_builder("qwen2_5_vl")
    stored = model.config.to_dict()
    text = stored.pop("text_config")
    flat = {**{key: value for key, value in text.items() if key not in ("model_type", "dtype")}, **stored}
    config = type(model.config).from_dict(flat)
    assert config.text_config.num_hidden_layers == 6
    flat_model = type(model)(config).eval()
    remove_layers(flat_model, [0, 4])
    save_model(flat_model, None, tmp_path / "small")
    assert self_test(flat_model, tmp_path / "small", inputs).max_logit_difference == 0
    assert len(decoder_layers(flat_model)) == 4


def test_cross_attention_layers_are_renumbered(family_builder: Callable[[str], Built]) -> None:
    model, _ = family_builder("mllama")
    remove_layers(model, [0, 4])
    assert model.config.text_config.cross_attention_layers == [0]
    assert model.model.language_model.cross_attention_layers == [0]


def test_layers_that_alone_see_the_picture_must_stay(family_builder: Callable[[str], Built]) -> None:
    model, inputs = family_builder("mllama")
    before = _logits(model, inputs)
    with pytest.raises(ModelError) as caught:
        remove_layers(model, [1, 4])
    assert str(caught.value) == (
        "these layers can't be removed: they are the only ones that look at the picture"
        " (cross_attention_layers=[1, 4])\n"
        "  allowed: decoder layers that nothing else depends on\n"
        "  next:    choose other layers, remove none, or use another model"
    )
    assert torch.equal(_logits(model, inputs), before)


def test_layers_fed_by_the_vision_encoder_must_stay(family_builder: Callable[[str], Built]) -> None:
    model, _ = family_builder("qwen3_vl")
    with pytest.raises(ModelError, match="Qwen3-VL adds features of the vision encoder to its first 2 decoder layers"):
        remove_layers(model, [1, 4])
    assert len(decoder_layers(model)) == 6


@pytest.mark.parametrize(
    ("remove", "text"),
    [
        ([4], "there is no decoder layer 4 to remove"),
        ([-1], "there is no decoder layer -1 to remove"),
        ([1, 9, 12], "there is no decoder layer 9, 12 to remove"),
        ([True], "there is no decoder layer True to remove"),
        ([1.0], "there is no decoder layer 1.0 to remove"),
        (["1"], "there is no decoder layer '1' to remove"),
        ([1, 1], "the layers to remove name one twice: [1, 1]"),
        ([0, 1, 2, 3], "removing all 4 decoder layers leaves no model"),
    ],
)
def test_wrong_layers_are_refused_and_nothing_changes(tiny_llava: Loaded, remove: list[Any], text: str) -> None:
    with pytest.raises(ModelError) as caught:
        remove_layers(tiny_llava.model, remove)
    assert str(caught.value).splitlines()[0] == text
    assert "allowed: different layers from 0 to 3, not all of them" in str(caught.value)
    assert len(decoder_layers(tiny_llava.model)) == 4


def test_layers_under_an_adapter_are_refused(tiny_llava: Loaded) -> None:
    region = Region(layers=(1,), num_layers=4, spec="ids:1")
    wrapped = peft.get_peft_model(tiny_llava.model, lora_config(tiny_llava.model, region, r=2))
    with pytest.raises(ModelError, match="can't be removed under a PEFT adapter"):
        remove_layers(wrapped, [0])


def test_an_unknown_field_about_layers_is_refused(tiny_llava: Loaded) -> None:
    tiny_llava.model.config.text_config.fancy_layer_order = [3, 1, 2, 0]
    with pytest.raises(
        ModelError, match=r"the config field fancy_layer_order=\[3, 1, 2, 0\] speaks of layers in a way"
    ):
        remove_layers(tiny_llava.model, [1])
    assert len(decoder_layers(tiny_llava.model)) == 4


def test_an_unknown_field_in_the_outer_config_is_refused(tiny_llava: Loaded) -> None:
    tiny_llava.model.config.inject_layers = [[0, 1], [1, 3]]
    with pytest.raises(ModelError, match="the config field inject_layers="):
        remove_layers(tiny_llava.model, [1])


def test_a_fact_that_a_reload_would_change_is_refused(tiny_llava: Loaded) -> None:
    decoder_layers(tiny_llava.model)[2].self_attn.scaling = 0.125
    with pytest.raises(ModelError, match=r"self_attn\.scaling of layer 2 is 0\.125 and would be 0\.35"):
        remove_layers(tiny_llava.model, [1])
    assert [layer.self_attn.layer_idx for layer in decoder_layers(tiny_llava.model)] == [0, 1, 2, 3]


def test_a_layer_of_another_shape_is_refused(tiny_llava: Loaded) -> None:
    decoder_layers(tiny_llava.model)[2].mlp.up_proj = torch.nn.Linear(32, 48, bias=False)
    with pytest.raises(
        ModelError, match=r"mlp\.up_proj\.weight of layer 2 has shape \(48, 32\) and would have \(64, 32\)"
    ):
        remove_layers(tiny_llava.model, [1])


def test_a_pruned_checkpoint_loads_with_plain_transformers(tiny_llava: Loaded, tmp_path: Path) -> None:
    region = Region(layers=(0, 2), num_layers=4, spec="ids:0,2")
    remove_layers(tiny_llava.model, [1])
    save_model(tiny_llava.model, tiny_llava.processor, tmp_path / "small", region)
    plain = LlavaForConditionalGeneration.from_pretrained(tmp_path / "small")
    assert len(plain.model.language_model.layers) == 3
    assert json.loads((tmp_path / "small" / "config.json").read_text())["text_config"]["num_hidden_layers"] == 3
    assert json.loads((tmp_path / "small" / "region.json").read_text())["layers"] == [0, 2]
