"""Visual token skipping against plain layers whose image tokens are put back afterwards."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from family_inputs import make_inputs
from family_rows import ROWS, Row
from family_zoo import build_model, model_types
from torch import Tensor

from striate.artifacts import Region, write_document
from striate.config import TrainSection
from striate.errors import ModelError
from striate.models.structure.anatomy import decoder_layers, find_anatomy
from striate.models.surgery.remove_layers import remove_layers
from striate.models.visual_token_skipping.rule import VisualTokenSkipping, load_rule, skipping_of
from striate.models.visual_token_skipping.rule_check import check_rule, put_back
from striate.models.visual_token_skipping.visual_compute import VISUAL_COMPUTE_FILE, VisualCompute
from striate.training import approximations

FAMILIES = ("llava", "qwen2_vl", "qwen2_5_vl", "gemma3", "idefics3", "internvl", "mistral3", "paligemma", "qwen3_vl")
OTHER_ATTENTION = {"qwen3_5", "lfm3_vl", "llama4", "nemotron_h_omni"}
PICTURES = ("pixel_values",)


def build(model_type: str) -> tuple[Any, dict[str, Any], VisualCompute, Tensor]:
    """Return a tiny model, inputs with pictures, two layers that compute image tokens, and the mask of these."""
    model = build_model(model_type).eval()
    inputs = make_inputs(model, ROWS.get(model_type, Row()))
    anatomy = find_anatomy(model)
    compute = VisualCompute(layers=(0, 3), num_layers=anatomy.num_layers)
    image_BT = torch.isin(inputs["input_ids"], torch.tensor(anatomy.image_token_ids))
    return model, inputs, compute, image_BT


@pytest.mark.parametrize("model_type", FAMILIES)
def test_equals_whole_layers_put_back(model_type: str) -> None:
    model, inputs, compute, image_BT = build(model_type)
    with torch.no_grad():
        plain = model(**inputs).logits
        with VisualTokenSkipping(model, compute):
            found = model(**inputs).logits
        with put_back(decoder_layers(model), compute.skipped, image_BT):
            expected = model(**inputs).logits
        assert torch.equal(model(**inputs).logits, plain)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (plain - expected).abs().max() > 1e-2


@pytest.mark.families
@pytest.mark.parametrize("model_type", model_types())
def test_every_family_is_equal_or_refused(model_type: str) -> None:
    try:
        model, inputs, compute, image_BT = build(model_type)
    except Exception:
        pytest.skip("does not build as an LVLM here")
    with torch.no_grad():
        try:
            with VisualTokenSkipping(model, compute):
                found = model(**inputs).logits
        except ModelError:
            return
        with put_back(decoder_layers(model), compute.skipped, image_BT):
            expected = model(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_gradients_equal_those_of_whole_layers_put_back() -> None:
    model, inputs, compute, image_BT = build("llava")

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(**inputs).logits.square().mean().backward()
        return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}

    with VisualTokenSkipping(model, compute):
        found = gradients()
    with put_back(decoder_layers(model), compute.skipped, image_BT):
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
    model, inputs, compute, _ = build("llava")
    batch = mixed(model, inputs)
    image_BT = torch.isin(batch["input_ids"], torch.tensor(find_anatomy(model).image_token_ids))
    with torch.no_grad():
        with VisualTokenSkipping(model, compute):
            found = model(**batch).logits
        with put_back(decoder_layers(model), compute.skipped, image_BT):
            expected = model(**batch).logits
        text_only = model(input_ids=batch["input_ids"][1:], attention_mask=batch["attention_mask"][1:]).logits
    attended = batch["attention_mask"].bool()
    torch.testing.assert_close(found[attended], expected[attended], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1:], text_only, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["llava", "qwen2_5_vl", "gemma3"])
def test_generation_with_and_without_cache(model_type: str) -> None:
    model, inputs, compute, _ = build(model_type)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad():
        plain = model.generate(**inputs, **options, use_cache=True)
        with VisualTokenSkipping(model, compute):
            cached = model.generate(**inputs, **options, use_cache=True)
            uncached = model.generate(**inputs, **options, use_cache=False)
    assert torch.equal(cached.sequences, uncached.sequences)
    # The weights depend on transformers' version, and with some of them the words stay the same.
    assert not torch.allclose(cached.logits[0], plain.logits[0], atol=0.1)


def test_a_rule_of_all_layers_changes_nothing() -> None:
    model, inputs, compute, _ = build("llava")
    everything = VisualCompute(layers=tuple(range(compute.num_layers)), num_layers=compute.num_layers)
    with torch.no_grad():
        plain = model(**inputs).logits
        with VisualTokenSkipping(model, everything):
            assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("model_type", ["llava", "qwen2_5_vl", "gemma3"])
def test_a_suspended_rule_leaves_every_layer_whole(model_type: str) -> None:
    """To the bit, with steps and without, told the batch or not, forward and backward; then the rule holds again."""
    model, inputs, compute, _ = build(model_type)
    width = model.config.get_text_config().hidden_size

    def computed() -> tuple[Tensor, list[Tensor]]:
        model.zero_grad()
        logits = model(**inputs, use_cache=False).logits
        logits.square().mean().backward()
        return logits.detach(), [one.grad.clone() for one in model.parameters() if one.grad is not None]

    plain, gradients = computed()
    for shift in ({}, {layer: torch.randn(width) for layer in compute.skipped}):
        with VisualTokenSkipping(model, compute, shift) as rule:
            ruled = computed()[0]
            assert not torch.allclose(ruled, plain, atol=1e-2)
            for told in (nullcontext(), rule.reading(inputs["input_ids"], plain.device)):
                # The batch is told within the block, as in training.
                with rule.suspended(), told:
                    logits, found = computed()
                assert torch.equal(logits, plain)
                assert all(map(torch.equal, found, gradients))
            assert not rule.whole
            assert torch.equal(computed()[0], ruled)


def test_image_tokens_are_computed_only_inside() -> None:
    model, inputs, compute, image_BT = build("llava")
    seen: dict[int, int] = {}
    handles = [
        layer.mlp.register_forward_hook(lambda _m, args, _o, index=index: seen.update({index: args[0].shape[1]}))
        for index, layer in enumerate(decoder_layers(model))
    ]
    with torch.no_grad(), VisualTokenSkipping(model, compute):
        model(**inputs)
    for handle in handles:
        handle.remove()
    text = int((~image_BT).sum(1).max())
    assert seen == {
        index: image_BT.shape[1] if index in compute.layers else text for index in range(compute.num_layers)
    }


def test_checkpointed_gradients_are_the_same() -> None:
    model, inputs, compute, _ = build("llava")
    model.train()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        with VisualTokenSkipping(model, compute):
            model(**inputs, use_cache=False).logits.square().mean().backward()
        found.append([one.grad.clone() for one in model.parameters() if one.grad is not None])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again)


@pytest.mark.parametrize(
    ("model_type", "layers", "message"),
    [
        ("llava", 5, "the rule is of a model with 5 layers, and this one has 8"),
        ("mllama", 8, "has no image tokens among its text tokens|it is not known how that goes with positions"),
        ("qwen3_5", 8, "asks its cache for"),
    ],
)
def test_refusals(model_type: str, layers: int, message: str) -> None:
    model, inputs, _, _ = build(model_type)
    compute = VisualCompute(layers=(0,), num_layers=layers)
    plain = model(**inputs).logits

    def run() -> None:
        with VisualTokenSkipping(model, compute):
            model(**inputs)

    with pytest.raises(ModelError, match=message):
        run()
    assert torch.equal(model(**inputs).logits, plain)


def test_embeddings_alone_are_refused() -> None:
    model, inputs, compute, _ = build("llava")
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    with (
        VisualTokenSkipping(model, compute),
        pytest.raises(ModelError, match="needs token ids, and only embeddings were given"),
    ):
        model(inputs_embeds=embeddings)


def test_another_attention_is_refused() -> None:
    model, _, compute, _ = build("llava")
    model.config.get_text_config()._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelError, match="does not work with attention 'flash_attention_2'"):
        VisualTokenSkipping(model, compute)


def test_check_passes_and_leaves_no_rule() -> None:
    model, inputs, compute, _ = build("llava")
    inputs = {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"]), "labels": inputs["input_ids"]}
    plain = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"]).logits
    check_rule(model, compute, inputs)
    assert skipping_of(model) is None
    assert torch.equal(model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"]).logits, plain)


def test_check_finds_a_layer_that_looks_at_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, compute, _ = build("llava")
    inputs = {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}
    mlp = decoder_layers(model)[1].mlp
    plain = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda x: plain(x) + x.mean(1, keepdim=True))
    with pytest.raises(ModelError, match="can't be left out of layers of llava: outputs are off by"):
        check_rule(model, compute, inputs)


def test_one_rule_a_model() -> None:
    model, _, compute, _ = build("llava")
    with (
        VisualTokenSkipping(model, compute),
        pytest.raises(ModelError, match="has a rule already that says which layers compute image tokens"),
    ):
        VisualTokenSkipping(model, compute)


def test_a_folder_is_followed_only_if_it_holds_a_rule(tmp_path: Path) -> None:
    model, _, compute, _ = build("llava")
    load_rule(model, tmp_path)
    write_document(tmp_path / "region.json", Region(layers=(0, 3), num_layers=8, spec="ids:0,3"))
    load_rule(model, tmp_path)
    assert skipping_of(model) is None
    write_document(tmp_path / VISUAL_COMPUTE_FILE, compute)
    load_rule(model, tmp_path)
    rule = skipping_of(model)
    assert rule is not None
    assert rule.compute == compute


@pytest.mark.parametrize("removed", [[1, 5], [3]])
def test_removing_layers_moves_the_rule(removed: list[int]) -> None:
    """Layers that compute image tokens may be removed too."""
    model, inputs, compute, image_BT = build("llava")
    VisualTokenSkipping(model, compute)
    old_to_new = remove_layers(model, removed)
    rule = skipping_of(model)
    assert rule is not None
    assert rule.compute.layers == tuple(old_to_new[layer] for layer in compute.layers if layer in old_to_new)
    assert rule.compute.num_layers == 8 - len(removed)
    with torch.no_grad():
        found = model(**inputs).logits
        rule.remove()
        with put_back(decoder_layers(model), rule.compute.skipped, image_BT):
            expected = model(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_copy_of_a_model_has_a_rule_of_its_own() -> None:
    model, inputs, compute, _ = build("llava")
    VisualTokenSkipping(model, compute)
    other = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    with torch.no_grad():
        assert other(**inputs).logits.abs().max() > 0
        rule = skipping_of(other)
        assert rule is not None
        ruled = other(**inputs).logits
        rule.remove()
        assert (other(**inputs).logits - ruled).abs().max() > 1e-2


def test_a_refused_removal_keeps_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, compute, _ = build("llava")
    VisualTokenSkipping(model, compute)
    monkeypatch.setattr("striate.models.surgery.remove_layers._plan", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        remove_layers(model, [1])
    rule = skipping_of(model)
    assert rule is not None
    assert rule.compute == compute


def test_a_refused_training_keeps_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, compute, _ = build("llava")
    rule = VisualTokenSkipping(model, compute)
    config = TrainSection(image_tokens="region", image_also="ids:3")

    def refuse(*_: object) -> None:
        raise ModelError("refused", "another model", "choose one")

    monkeypatch.setattr(approximations, "check_rule", refuse)
    sample: Any = SimpleNamespace(images=("1.png",), messages=())
    collator: Any = lambda _: inputs  # noqa: E731
    collator.skips_broken = False
    with torch.no_grad():
        wanted = model(**inputs).logits
        region = Region(layers=(0,), num_layers=compute.num_layers, spec="ids:0")
        with pytest.raises(ModelError, match="refused"):
            approximations.begin_skipping(model, region, [sample], collator, config)
        assert skipping_of(model) is rule
        assert torch.equal(model(**inputs).logits, wanted)
