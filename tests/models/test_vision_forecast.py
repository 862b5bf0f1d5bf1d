"""The forecast of a vision encoder whose layers train: what autograd keeps of them, and what there is to train."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import peft
import pytest
import torch
from family_zoo import NUM_LAYERS, build
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

from striate.artifacts import Region
from striate.config import TrainSection
from striate.errors import SpecError
from striate.models.forecast.estimate import forecast
from striate.models.forecast.layer_shapes import model_shape
from striate.models.forecast.memory import _encoder_bytes
from striate.models.forecast.settings import Settings
from striate.models.forecast.vision_training import encoder_trained
from striate.models.structure.anatomy import VISION, component_of, find_anatomy
from striate.models.structure.meta_model import Blueprint
from striate.models.trainable.apply import apply_region, lora_config
from striate.training.precision import MasterWeights
from striate.training.what_trains import encoder_layers_of, encoder_region

NONE = Region(layers=(), num_layers=1, spec="none")
REGION = Region(layers=(1, 4), num_layers=NUM_LAYERS, spec="ids:1,4")


def siglip_llava(layers: int) -> LlavaForConditionalGeneration:
    text = LlamaConfig(hidden_size=40, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, vocab_size=100)
    vision = SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=99,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config).to(torch.bfloat16)


def kept_bytes(layers: int, chosen: tuple[int, ...], part: Any) -> int:
    """Return the bytes that autograd keeps of one forward pass, weights and their copies apart."""
    model: Any = siglip_llava(layers)
    region = Region(layers=chosen, num_layers=layers, spec="test")
    if part == "lora":
        model = peft.get_peft_model(
            model, lora_config(model, NONE, r=8, dropout=0.0, vision=part, vision_region=region)
        )
    apply_region(model, NONE, "lora" if part == "lora" else "full", vision=part, vision_region=region)
    MasterWeights(model)
    sizes = {parameter.shape for parameter in model.parameters()} | {
        p.T.shape for p in model.parameters() if p.dim() == 2
    }
    ids = torch.tensor([[99] * 16 + [5, 6]] * 2)
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape not in sizes:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    pixels = torch.randn(2, 3, 56, 56, dtype=torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        assert model(input_ids=ids, pixel_values=pixels, use_cache=False).logits.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(("part", "chosen"), [("full", (0, 2)), ("lora", (0, 2)), ("lora", (0,)), ("full", (0,))])
def test_kept_of_a_third_layer(part: Any, chosen: tuple[int, ...]) -> None:
    """Frozen above one that trains, or trained: the encoder's third layer keeps what a decoder's would."""
    found = kept_bytes(3, chosen, part) - kept_bytes(2, (0,), part)
    shape = model_shape(Blueprint(siglip_llava(3), find_anatomy(siglip_llava(3))), 16)
    settings = Settings(batch=2, vision=part, vision_chosen=frozenset(chosen), r=8, projector="frozen")
    whole, less = (
        _encoder_bytes(replace(shape, encoder=shape.encoder[:depth]), replace(settings, vision_chosen=frozenset(some)))
        for depth, some in ((3, chosen), (2, (0,)))
    )
    layer = shape.encoder[2]
    # Copies in bfloat16 are counted apart here, and there is no mask without dropout.
    copies = 2 * layer.linear_weights if part == "full" else 2 * 8 * sum(map(sum, layer.linears))
    masks = 2 * 16 * sum(inside for inside, _ in layer.linears) if part == "lora" else 0
    expected = whole - less - (copies + masks if 2 in chosen else 0)
    # Autocast casts a norm's input to float32 on CUDA, and leaves it in bfloat16 on the CPU.
    expected -= 2 * 16 * 2 * layer.norms
    if part == "full" and 2 in chosen:
        # Its result is in bfloat16 here too: matrices side by side share it, where on CUDA each casts its own.
        inputs = sum(inside for inside, _ in layer.linears)
        expected -= 2 * 16 * 2 * (layer.norms + inputs - layer.queries - 2 * layer.hidden - layer.inner)
    assert found == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("model_type", ["llava", "qwen2_5_vl", "gemma3", "internvl", "mllama"])
@pytest.mark.parametrize("part", ["lora", "full"])
def test_what_there_is_to_train(model_type: str, part: Any) -> None:
    model, _ = build(model_type)
    shape = model_shape(Blueprint(model, find_anatomy(model)), 4)
    layers = Region(layers=(1, 2), num_layers=len(shape.encoder), spec="ids:1,2")
    wrapped = peft.get_peft_model(model, lora_config(model, REGION, r=3, vision=part, vision_region=layers))
    apply_region(wrapped, REGION, "lora", vision=part, vision_region=layers)
    anatomy = find_anatomy(wrapped)
    opened = [
        tensor.numel()
        for name, tensor in wrapped.named_parameters()
        if tensor.requires_grad and component_of(anatomy, name) == VISION
    ]
    settings = Settings(r=3, vision=part, vision_chosen=frozenset(layers.layers))
    assert encoder_trained(shape, settings) == sum(opened)


def test_orders() -> None:
    """More of the encoder takes more; low layers more than high ones; all of it is freed at the end."""
    model, _ = build("llava")
    shape = model_shape(Blueprint(model, find_anatomy(model)))

    def step(**changes: Any) -> Any:
        return forecast(shape, REGION, Settings(r=2, batch=64, **changes))

    frozen, low, high = step(), step(vision="lora", vision_chosen={0}), step(vision="lora", vision_chosen={2})
    assert frozen.memory.activations < high.memory.activations < low.memory.activations
    assert frozen.milliseconds <= high.milliseconds <= low.milliseconds
    assert high.memory.states < step(vision="lora").memory.states < step(vision="full").memory.states
    assert step(vision="full", checkpointing=True).memory.peak < step(vision="full").memory.peak
    full = step(method="full", vision="full")
    assert full.memory.weights - step(method="full").memory.weights == pytest.approx(
        2 * encoder_trained(shape, Settings(vision="full"))
    )


def test_layers_are_counted_as_a_region_is() -> None:
    section = TrainSection(vision="lora", vision_layers="top:50%")
    assert encoder_layers_of(section, 23) == tuple(range(11, 23))
    assert encoder_layers_of(section.model_copy(update={"vision": "frozen"}), 23) == ()
    with pytest.raises(SpecError, match=r"train\.vision_layers, of 23 layers of the vision encoder"):
        encoder_region(TrainSection(vision="lora", vision_layers="bottom:24"), 23)
