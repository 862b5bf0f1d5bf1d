"""Which linear layers get adapters, of which kind and rank: PEFT's options through proof, forecast and merging."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from family_zoo import build
from test_trainability import FROZEN, Batch, Built, _batch, _region
from transformers import AutoConfig, AutoModelForImageTextToText

from striate.errors import TrainingError
from striate.models.forecast.adapter_sizes import adapters_of
from striate.models.forecast.estimate import forecast
from striate.models.forecast.layer_shapes import model_shape
from striate.models.forecast.settings import Settings
from striate.models.io.load import Loaded
from striate.models.structure.anatomy import find_anatomy, layer_of
from striate.models.structure.meta_model import Blueprint
from striate.models.trainable.apply import apply_region, lora_config
from striate.models.trainable.gradient_proof import prove_trainable
from striate.models.trainable.lora_modules import chosen_modules

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}


def kinds(config: peft.LoraConfig) -> set[str]:
    return {name.rpartition(".")[2] for name in config.target_modules}


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ("all", ATTENTION | MLP),
        ("attention", ATTENTION),
        ("mlp", MLP),
        ("gate+up", {"gate_proj", "up_proj"}),
        ("attention + down_proj", ATTENTION | {"down_proj"}),
        (["q_proj", "mlp.up_proj"], {"q_proj", "up_proj"}),
        ("self_attn", ATTENTION),
        ("q+v", {"q_proj", "v_proj"}),
    ],
)
def test_modules_are_chosen_by_kind_or_name(tiny_llava: Loaded, modules: Any, expected: set[str]) -> None:
    config = lora_config(tiny_llava.model, _region(1, 3), modules=modules)
    assert kinds(config) == expected
    assert len(config.target_modules) == 2 * len(expected)
    assert all(".layers.1." in name or ".layers.3." in name for name in config.target_modules)


@pytest.mark.parametrize(
    ("inner", "modules", "chosen"),
    [
        (["mlp.gate_up_proj", "mlp.down_proj"], "gate+up", ["mlp.gate_up_proj"]),
        (["self_attn.out_proj", "fc1", "fc2"], "mlp", ["fc1", "fc2"]),
        (["linear_attn.in_proj_qkv", "mlp.shared_expert.up_proj"], "attention", ["linear_attn.in_proj_qkv"]),
        (
            ["attention.output.dense", "intermediate.dense", "output.dense"],
            "mlp",
            ["intermediate.dense", "output.dense"],
        ),
        (["self_attn.q_proj.linear", "self_attn.k_proj.linear"], "q_proj", ["self_attn.q_proj.linear"]),
        (["conv.in_proj", "feed_forward.w1"], "mlp", ["feed_forward.w1"]),
    ],
)
def test_names_of_other_families(inner: list[str], modules: str, chosen: list[str]) -> None:
    assert chosen_modules(dict(zip(inner, inner, strict=True)), modules) == chosen


@pytest.mark.parametrize("modules", ["q_prj", "all+q_prj"])
def test_an_unknown_module_is_answered_with_the_known_ones(tiny_llava: Loaded, modules: str) -> None:
    with pytest.raises(TrainingError) as caught:
        lora_config(tiny_llava.model, _region(1), modules=modules)
    assert str(caught.value) == (
        "train.lora.modules: 'q_prj' is no linear layer of the region\n"
        "  allowed: all, attention, mlp, or of down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj one or"
        " several joined by +\n"
        "  next:    did you mean 'q_proj'? `striate inspect MODEL` shows the model's parts"
    )


@pytest.mark.parametrize("modules", ["", "gate+", " "])
def test_a_name_that_is_empty_is_refused(tiny_llava: Loaded, modules: str) -> None:
    with pytest.raises(TrainingError, match=r"train\.lora\.modules: '' is no linear layer"):
        lora_config(tiny_llava.model, _region(1), modules=modules)


def test_rank_and_alpha_by_pattern_are_pefts(tiny_llava: Loaded) -> None:
    region = _region(1, 3)
    options: dict[str, Any] = {"rank_pattern": {"down_proj": 6, r"layers\.3\.mlp\.up_proj": 2}}
    config = lora_config(tiny_llava.model, region, r=4, alpha=8, alpha_pattern={"q_proj": 32}, **options)
    wrapped = peft.get_peft_model(tiny_llava.model, config)
    apply_region(wrapped, region, "lora")
    ranks = {
        name.split(".layers.")[1].split(".lora_A")[0]: tensor.shape[0]
        for name, tensor in wrapped.named_parameters()
        if ".lora_A." in name
    }
    assert {ranks[name] for name in ("1.mlp.down_proj", "3.mlp.down_proj")} == {6}
    assert (ranks["1.mlp.up_proj"], ranks["3.mlp.up_proj"], ranks["1.self_attn.q_proj"]) == (4, 2, 4)
    layer = wrapped.get_base_model().model.language_model.layers[1]
    assert layer.self_attn.q_proj.scaling["default"] == 32 / 4
    assert layer.mlp.down_proj.scaling["default"] == 8 / 6


@pytest.mark.parametrize(
    ("options", "given", "hint"),
    [
        ({"rank_pattern": {"q_prj": 2}}, "train.lora.rank_pattern: 'q_prj' fits no module", "did you mean 'q_proj'?"),
        ({"alpha_pattern": {"q_proj": 2}, "modules": "mlp"}, "train.lora.alpha_pattern: 'q_proj' fits no", ""),
        (
            {"rank_pattern": {"q_proj(": 2}},
            "train.lora.rank_pattern: 'q_proj(' can't be read: missing )",
            "did you mean 'q_proj'?",
        ),
        ({"rank_pattern": {"q_proj": 0}}, "LoRA settings r=0", "the paper's are"),
        ({"alpha_pattern": {"q_proj": 0}}, "LoRA settings r=128, alpha=0", "the paper's are"),
    ],
)
def test_patterns_that_fit_nothing(tiny_llava: Loaded, options: dict[str, Any], given: str, hint: str) -> None:
    with pytest.raises(TrainingError) as caught:
        lora_config(tiny_llava.model, _region(1), **options)
    assert given in str(caught.value)
    assert hint in caught.value.next_step


def test_rslora_scales_by_the_root_of_the_rank(tiny_llava: Loaded) -> None:
    wrapped = peft.get_peft_model(tiny_llava.model, lora_config(tiny_llava.model, _region(1), r=16, use_rslora=True))
    assert wrapped.get_base_model().model.language_model.layers[1].mlp.up_proj.scaling["default"] == 256 / 4


def test_dora_is_proved_and_merged(family_builder: Callable[[str], Built]) -> None:
    model, inputs = family_builder("qwen2_5_vl")
    region = _region(1, 4, num_layers=6)
    wrapped = peft.get_peft_model(model, lora_config(model, region, r=2, dropout=0.0, use_dora=True, modules="mlp"))
    trainable = apply_region(wrapped, region, "lora", "frozen")
    norms = [name for name, tensor in wrapped.named_parameters() if "magnitude" in name and tensor.requires_grad]
    assert len(norms) == 2 * 3
    assert {row.component for row in trainable.components if row.trainable} == {"decoder layer"}
    assert prove_trainable(wrapped, region, _batch(inputs), FROZEN).startswith("18 tensors in 2 of 6")
    with torch.no_grad():
        for name, tensor in wrapped.named_parameters():
            if "lora_B" in name or "magnitude" in name:
                tensor.add_(torch.rand_like(tensor) * 0.1)
        expected = wrapped.eval()(**inputs).logits
        merged = wrapped.merge_and_unload(safe_merge=True)(**inputs).logits
    torch.testing.assert_close(merged, expected, rtol=1e-3, atol=1e-4)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"modules": "gate+up"},
    {"modules": "attention", "rank_pattern": {"q_proj": 7}},
    {"use_dora": True, "rank_pattern": {r"layers\.4\.mlp\.down_proj": 9, "down_proj": 3}},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("model_type", ["llava", "qwen3_5", "glm4v"])
def test_the_forecast_counts_the_adapters_that_there_are(model_type: str, options: dict[str, Any]) -> None:
    model, _ = build(model_type)
    # Some of one family's layers have another kind of attention.
    region = _region(1, 3, 4, num_layers=8)
    shape = model_shape(Blueprint(model, find_anatomy(model)), 4)
    wrapped = peft.get_peft_model(model, lora_config(model, region, r=5, **options))
    anatomy, counted = find_anatomy(wrapped), {}
    for name, tensor in wrapped.named_parameters():
        if ".lora_" in name:
            layer = layer_of(anatomy, name)
            counted[layer] = counted.get(layer, 0) + tensor.numel()
    settings = Settings(r=5, **{**options, "rank_pattern": tuple(options.get("rank_pattern", {}).items())})
    assert {index: adapters_of(shape.layers[index], settings).parameters for index in region.layers} == counted


def test_fewer_adapters_are_forecast_to_take_less() -> None:
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(AutoConfig.for_model("llava"))
    shape, region = model_shape(Blueprint(model, find_anatomy(model))), _region(1, 30, num_layers=32)
    whole, part, dora = (
        forecast(shape, region, Settings(**more)) for more in ({}, {"modules": "gate+up"}, {"use_dora": True})
    )
    assert part.memory.peak < whole.memory.peak < dora.memory.peak
    assert part.milliseconds < whole.milliseconds < dora.milliseconds


def test_a_batch_is_a_batch(family_builder: Callable[[str], Built]) -> None:
    """Adapters on attention alone leave every other linear layer of the region as it is."""
    model, inputs = family_builder("llava")
    wrapped = peft.get_peft_model(model, lora_config(model, _region(2, num_layers=6), r=2, modules="attention"))
    apply_region(wrapped, _region(2, num_layers=6), "lora")
    batch: Batch = _batch(inputs)
    assert prove_trainable(wrapped, _region(2, num_layers=6), batch).startswith("8 tensors in 1 of 6 decoder layers")
