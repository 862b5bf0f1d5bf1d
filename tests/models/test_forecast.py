"""The forecast against steps measured on an H100, and its counts against what autograd keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from family_needs import needs
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from typer.testing import CliRunner

from striate.artifacts import Region
from striate.cli import app
from striate.errors import ModelError, SpecError
from striate.models.forecast.estimate import Settings, accelerator, forecast, forecasts
from striate.models.forecast.layer_shapes import LayerShape, ModelShape, _layer_shape, model_shape
from striate.models.forecast.memory import _own_bytes
from striate.models.structure.anatomy import find_anatomy
from striate.models.structure.image_tokens import image_tokens
from striate.models.structure.meta_model import Blueprint, blueprint
from striate.models.trainable.apply import apply_region, lora_config
from striate.training.precision import MasterWeights

ALL = Region(layers=tuple(range(32)), num_layers=32, spec="all")
QUARTER = Region(layers=tuple(range(0, 32, 4)), num_layers=32, spec="uniform:25%")

# One H100, torch 2.11, transformers 5.17, LLaVA-1.5-7B's shape, 8 samples of 576 image and 200 text tokens: the
# reference step, which has logits at all positions and no float32 masters. Region, method, checkpointed, ms, GiB.
MEASURED = [
    (ALL, "lora", False, 670, 64.4),
    (QUARTER, "lora", False, 503, 46.2),
    (QUARTER, "full", False, 485, 48.7),
    (ALL, "lora", True, 1005, 21.7),
    (QUARTER, "lora", True, 757, 18.6),
]


def llava_7b_config() -> LlavaConfig:
    text = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32064
    )
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=32000)


@pytest.fixture(scope="module")
def llava_7b() -> ModelShape:
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(llava_7b_config())
    return model_shape(Blueprint(model, find_anatomy(model)))


@pytest.mark.parametrize(("region", "method", "checkpointing", "milliseconds", "gib"), MEASURED)
def test_measured_steps(
    llava_7b: ModelShape, region: Region, method: Any, checkpointing: bool, milliseconds: float, gib: float
) -> None:
    settings = Settings(method=method, checkpointing=checkpointing, masters=False, answers_only=False)
    found = forecast(llava_7b, region, settings)
    assert found.memory.peak_gib == pytest.approx(gib, rel=0.15)
    assert found.milliseconds == pytest.approx(milliseconds, rel=0.30)


def test_measured_memory_closely(llava_7b: ModelShape) -> None:
    """Nothing in the memory's arithmetic is fitted: a lost tensor shows here before it reaches 15%."""
    for region, method, checkpointing, _, gib in MEASURED:
        settings = Settings(method=method, checkpointing=checkpointing, masters=False, answers_only=False)  # type: ignore[arg-type]
        assert forecast(llava_7b, region, settings).memory.peak_gib == pytest.approx(gib, rel=0.04)


def test_shape_of_llava_7b(llava_7b: ModelShape) -> None:
    assert llava_7b.image_tokens == 576
    layer = llava_7b.layers[0]
    assert (layer.queries, layer.keys, layer.inner, layer.gated) == (4096, 4096, 11008, True)
    assert layer.linear_weights == 4 * 4096**2 + 3 * 4096 * 11008
    assert sum(
        one.parameters for one in llava_7b.layers
    ) + llava_7b.projector_parameters + llava_7b.other_parameters == (7_063_427_072)


def test_orders(llava_7b: ModelShape) -> None:
    """What must be more is more, with striate's own settings."""

    def step(region: Region = QUARTER, **changes: Any) -> Any:
        return forecast(llava_7b, region, Settings(**changes))

    assert step(ALL).memory.peak > step().memory.peak > step(checkpointing=True).memory.peak
    assert step(ALL).milliseconds > step().milliseconds
    assert step(checkpointing=True).milliseconds > step().milliseconds
    assert step(method="qlora").memory.peak < step().memory.peak - 8 * 2**30
    assert step(method="full").memory.states == 2 * step(method="full").memory.gradients
    assert step(method="full", accumulated=True).memory.peak > step(method="full").memory.peak
    assert step(batch=16).memory.activations == pytest.approx(2 * step(batch=8).memory.activations)
    assert step(answers_only=False).memory.peak > step().memory.peak
    assert step(method="full").fits
    assert not step(ALL, method="full").fits


def test_nothing_is_kept_below_the_region_without_projector(llava_7b: ModelShape) -> None:
    top = Region(layers=tuple(range(24, 32)), num_layers=32, spec="top:8")
    settings = Settings(projector="frozen")
    low, high = forecast(llava_7b, top, settings), forecast(llava_7b, top, Settings())
    assert low.memory.activations < 0.5 * high.memory.activations
    assert low.milliseconds < 0.75 * high.milliseconds


def build(layers: int) -> LlavaForConditionalGeneration:
    text = LlamaConfig(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=100,
    )
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=99, vision_feature_layer=-1)
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config).to(torch.bfloat16)


def kept_bytes(layers: int, region: tuple[int, ...], method: str, masters: bool) -> int:
    """Return the bytes that autograd keeps of one forward pass, weights and their copies apart."""
    model: Any = build(layers)
    chosen = Region(layers=region, num_layers=layers, spec="test")
    if method == "lora":
        model = peft.get_peft_model(model, lora_config(model, chosen, r=8, dropout=0.0))
    apply_region(model, chosen, method)
    if masters:
        MasterWeights(model)
    sizes = {parameter.shape for parameter in model.parameters()} | {
        p.T.shape for p in model.parameters() if p.dim() == 2
    }
    ids = torch.randint(1, 90, (2, 24))
    ids[:, 2:6] = 99
    pixels = torch.randn(2, 3, 28, 28, dtype=torch.bfloat16)
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape not in sizes:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids, pixel_values=pixels, use_cache=False).logits
    assert logits.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def layer_shape() -> LayerShape:
    with torch.device("meta"):
        model = build(1)
    return model_shape(Blueprint(model, find_anatomy(model))).layers[0]


@pytest.mark.parametrize(
    ("region", "method", "masters"),
    [((0,), "full", True), ((0, 2), "full", True), ((0, 2), "full", False), ((0, 2), "lora", True)],
)
def test_kept_activations(region: tuple[int, ...], method: Any, masters: bool) -> None:
    """The third layer's share of what autograd keeps, frozen or trained, is what the forecast counts."""
    tokens = 2 * 24
    found = kept_bytes(3, region, method, masters) - kept_bytes(2, (0,), method, masters)
    layer = layer_shape()
    expected = _own_bytes(layer, 2 in region, Settings(method=method, masters=masters, r=8))
    if method == "lora":
        # Without dropout there is no mask.
        expected -= sum(inside for inside, _ in layer.linears)
    assert found / tokens == pytest.approx(expected, rel=0.03)


def kept_by_decoder(model_type: str, layers: int) -> tuple[int, LayerShape]:
    """Return the bytes that autograd keeps in a frozen text decoder, and the shape of its last layer."""
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model(
        model_type, **sizes, head_dim=16, num_hidden_layers=layers, vocab_size=100, pad_token_id=0
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).requires_grad_(False)
    model.enable_input_require_grads()
    weights = {p.shape for p in model.parameters()} | {p.T.shape for p in model.parameters() if p.dim() == 2}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        out = model(input_ids=torch.randint(1, 90, (2, 24)), use_cache=False).logits
    assert out.requires_grad
    return sum(storage.nbytes() for storage in kept.values()), _layer_shape(model.model.layers[-1], config)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "phi3", "gemma3_text"])
def test_kept_activations_of_other_decoders(model_type: str) -> None:
    """Grouped keys, norms of queries and keys, one matrix for queries, keys and values, four norms a layer."""
    more, layer = kept_by_decoder(model_type, 3)
    less, _ = kept_by_decoder(model_type, 2)
    expected = _own_bytes(layer, False, Settings())
    assert (more - less) / 48 == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("model_type", "count"),
    [
        ("llava", 576),
        ("llava_next", 576),
        ("gemma3", 256),
        ("paligemma", 256),
        ("qwen2_5_vl", 576),
        ("internvl", 256),
        ("idefics2", 64),
        ("janus", 576),
    ],
)
def test_image_tokens(model_type: str, count: int) -> None:
    from transformers import AutoModelForImageTextToText

    config = AutoConfig.for_model(model_type)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    found = image_tokens(model)
    assert found.count == count
    assert "px" in str(found) or "every picture" in str(found)


@pytest.mark.parametrize("model_type", ["qwen3_vl_moe", "llama4", "gemma3", "mllama", "paligemma"])
def test_other_families_have_a_forecast(model_type: str) -> None:
    from transformers import AutoModelForImageTextToText

    needs(model_type)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(model_type))
    plan = Blueprint(model, find_anatomy(model))
    layers = plan.anatomy.num_layers
    region = Region(layers=(0, layers - 1), num_layers=layers, spec="ids")
    found = list(forecasts(plan, region, Settings()))
    assert len(found) == 6
    assert all(one.memory.peak > one.memory.weights > 0 and one.milliseconds > 0 for one in found)
    shape = model_shape(plan)
    assert all(layer.weights <= layer.parameters for layer in shape.layers)
    assert any(layer.experts for layer in shape.layers) == (model_type in ("qwen3_vl_moe", "llama4"))


def test_refusals(llava_7b: ModelShape) -> None:
    with pytest.raises(SpecError, match="is for 4 decoder layers, the model has 32"):
        forecast(llava_7b, Region(layers=(0,), num_layers=4, spec="ids:0"), Settings())
    with pytest.raises(ModelError, match="batch 0"):
        forecast(llava_7b, ALL, Settings(batch=0))
    with pytest.raises(ModelError, match="did you mean 'a100'"):
        accelerator("a10")
    assert accelerator("H100").name == "h100"


def test_inspect(tmp_path: Path) -> None:
    llava_7b_config().save_pretrained(tmp_path)
    result = CliRunner().invoke(app, ["inspect", str(tmp_path), "--region", "uniform:25%"])
    assert result.exit_code == 0, result.output
    assert "576 image tokens for a picture, resized to 336 x 336 px" in result.output
    rows = [line.split() for line in result.output.splitlines() if line.startswith(("LoRA ", "QLoRA ", "full "))]
    assert [row[0] for row in rows if row[1] in ("yes", "no")] == ["LoRA"] * 2 + ["QLoRA"] * 2 + ["full"] * 2
    small = CliRunner().invoke(app, ["inspect", str(tmp_path), "--region", "all", "--accelerator", "rtx4090"])
    assert "> 24" in small.output
    empty = CliRunner().invoke(app, ["inspect", str(tmp_path), "--region", "none"])
    assert empty.exit_code == 0, empty.output
    assert "LoRA " not in empty.output.replace("QLoRA and", "").replace("LoRA rank", "")
    wrong = CliRunner().invoke(app, ["inspect", str(tmp_path), "--region", "all", "--batch", "0"])
    assert wrong.exit_code == 1
    assert blueprint(str(tmp_path)).anatomy.num_layers == 32


def test_inspect_with_what_trains(tmp_path: Path) -> None:
    llava_7b_config().save_pretrained(tmp_path)

    def shown(*settings: str) -> Any:
        named = [part for setting in settings for part in ("--set", f"train.{setting}")]
        return CliRunner().invoke(app, ["inspect", str(tmp_path), "--region", "ids:0", *named])

    plain, chosen = shown("lora.r=2"), shown("lora.r=2", "lora.modules=gate+up", "projector=lora", "vision=lora")
    # Pairs of seven matrices, and the projector's two with biases.
    whole = 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert f"{2 * (4 * 8192 + 3 * (4096 + 11008)) + whole:,}" in plain.output
    # Two matrices of the layer, two of the projector, and six of each of 23 layers of CLIP.
    pairs = 2 * (4096 + 11008) + (1024 + 4096) + 8192 + 23 * (4 * 2048 + 2 * 5120)
    assert f"{2 * pairs:,}" in chosen.output
    assert "layers 0, and the projector by adapters, and layers of the vision encoder by adapters" in chosen.output
    rows = [line.split() for line in chosen.output.splitlines() if line.startswith(("LoRA ", "QLoRA ", "full "))]
    assert [row[0] for row in rows if row[1] in ("yes", "no")] == ["LoRA"] * 2 + ["QLoRA"] * 2
    wrong = shown("lora.modules=gat")
    assert wrong.exit_code == 1
    assert "'gat' is no linear layer of the region" in wrong.output
