"""Region-only visual compute against plain layers whose image tokens are put back afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from family_inputs import make_inputs
from family_rows import ROWS, Row
from family_zoo import build_model, model_types
from torch import Tensor

from striate.artifacts import Region, write_document
from striate.errors import ModelError
from striate.models.structure.anatomy import decoder_layers, find_anatomy
from striate.models.surgery.remove_layers import remove_layers
from striate.models.visual_token_skipping.checkpoint_rule import follow_region
from striate.models.visual_token_skipping.rule import ImageSkip, rule_of
from striate.models.visual_token_skipping.rule_check import check_rule, put_back

FAMILIES = ("llava", "qwen2_vl", "qwen2_5_vl", "gemma3", "idefics3", "internvl", "mistral3", "paligemma", "qwen3_vl")
OTHER_ATTENTION = {"qwen3_5", "lfm3_vl", "llama4", "nemotron_h_omni"}
PICTURES = ("pixel_values",)


def build(model_type: str) -> tuple[Any, dict[str, Any], Region, Tensor]:
    """Return a tiny model, inputs with pictures, a region of two layers, and the mask of image tokens."""
    model = build_model(model_type).eval()
    inputs = make_inputs(model, ROWS.get(model_type, Row()))
    anatomy = find_anatomy(model)
    region = Region(layers=(0, 3), num_layers=anatomy.num_layers, spec="ids:0,3")
    image_BT = torch.isin(inputs["input_ids"], torch.tensor(anatomy.image_token_ids))
    return model, inputs, region, image_BT


@pytest.mark.parametrize("model_type", FAMILIES)
def test_equals_whole_layers_put_back(model_type: str) -> None:
    model, inputs, region, image_BT = build(model_type)
    with torch.no_grad():
        plain = model(**inputs).logits
        with ImageSkip(model, region):
            found = model(**inputs).logits
        with put_back(decoder_layers(model), region, image_BT):
            expected = model(**inputs).logits
        assert torch.equal(model(**inputs).logits, plain)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (plain - expected).abs().max() > 1e-2


@pytest.mark.families
@pytest.mark.parametrize("model_type", model_types())
def test_every_family_is_equal_or_refused(model_type: str) -> None:
    try:
        model, inputs, region, image_BT = build(model_type)
    except Exception:
        pytest.skip("does not build as an LVLM here")
    with torch.no_grad():
        try:
            with ImageSkip(model, region):
                found = model(**inputs).logits
        except ModelError:
            return
        with put_back(decoder_layers(model), region, image_BT):
            expected = model(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_gradients_equal_those_of_whole_layers_put_back() -> None:
    model, inputs, region, image_BT = build("llava")

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(**inputs).logits.square().mean().backward()
        return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}

    with ImageSkip(model, region):
        found = gradients()
    with put_back(decoder_layers(model), region, image_BT):
        expected = gradients()
    assert set(found) <= set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found.get(name, torch.zeros_like(gradient)), gradient, atol=1e-6, rtol=1e-4)


def mixed(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the first row of `inputs` right-padded, beside a row of text only."""
    ids_1T = inputs["input_ids"][:1]
    text_1T = torch.randint(5, 50, ids_1T.shape)
    padded = torch.cat([ids_1T, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    rows = torch.cat([padded, torch.cat([text_1T, text_1T[:, :3]], dim=1)])
    mask = torch.ones_like(rows)
    mask[0, -3:] = 0
    pictures = {name: inputs[name][:1] for name in PICTURES}
    return {"input_ids": rows, "attention_mask": mask, **pictures}


def test_rows_with_and_without_pictures() -> None:
    model, inputs, region, _ = build("llava")
    batch = mixed(model, inputs)
    image_BT = torch.isin(batch["input_ids"], torch.tensor(find_anatomy(model).image_token_ids))
    with torch.no_grad():
        with ImageSkip(model, region):
            found = model(**batch).logits
        with put_back(decoder_layers(model), region, image_BT):
            expected = model(**batch).logits
        text_only = model(input_ids=batch["input_ids"][1:], attention_mask=batch["attention_mask"][1:]).logits
    attended = batch["attention_mask"].bool()
    torch.testing.assert_close(found[attended], expected[attended], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1:], text_only, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["llava", "qwen2_5_vl", "gemma3"])
def test_generation_with_and_without_cache(model_type: str) -> None:
    model, inputs, region, _ = build(model_type)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad():
        plain = model.generate(**inputs, **options, use_cache=True)
        with ImageSkip(model, region):
            cached = model.generate(**inputs, **options, use_cache=True)
            uncached = model.generate(**inputs, **options, use_cache=False)
    assert torch.equal(cached.sequences, uncached.sequences)
    # The weights depend on transformers' version, and with some of them the words stay the same.
    assert not torch.allclose(cached.logits[0], plain.logits[0], atol=0.1)


def test_a_region_of_all_layers_changes_nothing() -> None:
    model, inputs, region, _ = build("llava")
    everything = Region(layers=tuple(range(region.num_layers)), num_layers=region.num_layers, spec="all")
    with torch.no_grad():
        plain = model(**inputs).logits
        with ImageSkip(model, everything):
            assert torch.equal(model(**inputs).logits, plain)


def test_image_tokens_are_computed_only_inside() -> None:
    model, inputs, region, image_BT = build("llava")
    seen: dict[int, int] = {}
    handles = [
        layer.mlp.register_forward_hook(lambda _m, args, _o, index=index: seen.update({index: args[0].shape[1]}))
        for index, layer in enumerate(decoder_layers(model))
    ]
    with torch.no_grad(), ImageSkip(model, region):
        model(**inputs)
    for handle in handles:
        handle.remove()
    text = int((~image_BT).sum(1).max())
    assert seen == {index: image_BT.shape[1] if index in region else text for index in range(region.num_layers)}


def test_checkpointed_gradients_are_the_same() -> None:
    model, inputs, region, _ = build("llava")
    model.train()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        with ImageSkip(model, region):
            model(**inputs, use_cache=False).logits.square().mean().backward()
        found.append([one.grad.clone() for one in model.parameters() if one.grad is not None])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again)


@pytest.mark.parametrize(
    ("model_type", "layers", "message"),
    [
        ("llava", 5, "the region is of a model with 5 layers, and this one has 8"),
        ("mllama", 8, "has no image tokens among its text tokens|it is not known how that goes with positions"),
        ("qwen3_5", 8, "asks its cache for|keeps no keys and values"),
    ],
)
def test_refusals(model_type: str, layers: int, message: str) -> None:
    model, inputs, _, _ = build(model_type)
    region = Region(layers=(0,), num_layers=layers, spec="ids:0")
    plain = model(**inputs).logits

    def run() -> None:
        with ImageSkip(model, region):
            model(**inputs)

    with pytest.raises(ModelError, match=message):
        run()
    assert torch.equal(model(**inputs).logits, plain)


def test_embeddings_alone_are_refused() -> None:
    model, inputs, region, _ = build("llava")
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    with ImageSkip(model, region), pytest.raises(ModelError, match="needs token ids, and only embeddings were given"):
        model(inputs_embeds=embeddings)


def test_another_attention_is_refused() -> None:
    model, _, region, _ = build("llava")
    model.config.get_text_config()._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelError, match="does not work with attention 'flash_attention_2'"):
        ImageSkip(model, region)


def test_check_passes_and_leaves_no_rule() -> None:
    model, inputs, region, _ = build("llava")
    inputs = {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"]), "labels": inputs["input_ids"]}
    plain = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"]).logits
    check_rule(model, region, inputs)
    assert rule_of(model) is None
    assert torch.equal(model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"]).logits, plain)


def test_check_finds_a_layer_that_looks_at_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, region, _ = build("llava")
    inputs = {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}
    mlp = decoder_layers(model)[1].mlp
    plain = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda x: plain(x) + x.mean(1, keepdim=True))
    with pytest.raises(ModelError, match="can't be left out of layers of llava: outputs are off by"):
        check_rule(model, region, inputs)


def test_one_rule_a_model() -> None:
    model, _, region, _ = build("llava")
    with ImageSkip(model, region), pytest.raises(ModelError, match="computes image tokens in the layers of another"):
        ImageSkip(model, region)


def test_a_region_file_is_followed_only_if_it_asks(tmp_path: Path) -> None:
    model, _, region, _ = build("llava")
    follow_region(model, tmp_path / "region.json")
    write_document(tmp_path / "region.json", region)
    follow_region(model, tmp_path / "region.json")
    assert rule_of(model) is None
    write_document(tmp_path / "region.json", region.model_copy(update={"image_tokens": "region"}))
    follow_region(model, tmp_path / "region.json")
    rule = rule_of(model)
    assert rule is not None
    assert rule.region.layers == region.layers


def test_removing_layers_moves_the_rule() -> None:
    model, inputs, region, image_BT = build("llava")
    ImageSkip(model, region.model_copy(update={"image_tokens": "region"}))
    old_to_new = remove_layers(model, [1, 5])
    rule = rule_of(model)
    assert rule is not None
    assert rule.region.layers == tuple(old_to_new[layer] for layer in region.layers)
    with torch.no_grad():
        found = model(**inputs).logits
        rule.remove()
        with put_back(decoder_layers(model), rule.region, image_BT):
            expected = model(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_layers_outside_the_region_may_compute_image_tokens() -> None:
    model, inputs, region, image_BT = build("llava")
    more = region.model_copy(update={"image_layers": (1, 5)})
    with torch.no_grad():
        with ImageSkip(model, region):
            without = model(**inputs).logits
        ImageSkip(model, more)
        found = model(**inputs).logits
        old_to_new = remove_layers(model, [1])
        rule = rule_of(model)
        assert rule is not None
        assert (rule.region.image_layers, rule.region.num_layers) == ((old_to_new[5],), 7)
    model, *_ = build("llava")
    with torch.no_grad(), put_back(decoder_layers(model), more, image_BT):
        expected = model(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (without - expected).abs().max() > 1e-3


def test_a_refused_removal_keeps_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, region, _ = build("llava")
    ImageSkip(model, region)
    monkeypatch.setattr("striate.models.surgery.remove_layers._plan", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        remove_layers(model, [1])
    rule = rule_of(model)
    assert rule is not None
    assert rule.region == region
