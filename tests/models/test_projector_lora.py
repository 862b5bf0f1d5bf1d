"""Adapters on the projector: the whole adapter is plain LoRA, over families, by vLLM's own rules for what it serves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from family_matrix import with_labels
from family_needs import needs
from family_zoo import NUM_LAYERS, build
from safetensors import safe_open
from test_trainability import _region

from striate.artifacts import Region
from striate.errors import TrainingError
from striate.models.forecast.adapter_sizes import projector_trained
from striate.models.forecast.estimate import forecast
from striate.models.forecast.layer_shapes import model_shape
from striate.models.forecast.settings import Settings
from striate.models.io.load import Loaded
from striate.models.structure.anatomy import component_of, find_anatomy
from striate.models.structure.meta_model import Blueprint
from striate.models.trainable.apply import apply_region, lora_config
from striate.models.trainable.beside import Beside
from striate.models.trainable.gradient_proof import prove_trainable

REGION = Region(layers=(1, 4), num_layers=NUM_LAYERS, spec="ids:1,4")
LORA = Beside("lora")
FACTOR = re.compile(r"base_model\.model\.(?P<module>[\w.]+)\.lora_(A|B)\.weight")


def check_as_vllm_does(folder: Path, model: Any) -> None:
    """Raise unless the adapter is one that vLLM serves: no saved modules, no DoRA, no bias, pairs on linear layers."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert not config["modules_to_save"]
    assert not config["use_dora"]
    assert config["bias"] == "none"
    assert isinstance(config["r"], int)
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({}, {})
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            matched = FACTOR.fullmatch(name)
            assert matched, name
            assert matched["module"] in linears


@pytest.mark.parametrize("model_type", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm", "mllama", "blip-2"])
def test_the_whole_adapter_is_plain_lora(model_type: str, tmp_path: Path) -> None:
    needs(model_type)
    model, inputs = build(model_type)
    plan = Blueprint(model, find_anatomy(model))
    shape = model_shape(plan, 4)
    plain, _ = build(model_type)
    wrapped = peft.get_peft_model(model, lora_config(model, REGION, r=3, dropout=0.0, projector="lora"))
    trainable = apply_region(wrapped, REGION, "lora", "lora")
    assert {row.component for row in trainable.components if row.trainable} == {"decoder layer", "projector"}
    assert "of the projector received finite gradients" in prove_trainable(
        wrapped, REGION, with_labels(model, inputs), LORA
    )
    opened = [
        tensor.numel()
        for name, tensor in wrapped.named_parameters()
        if tensor.requires_grad and component_of(plan.anatomy, name) == "projector"
    ]
    assert projector_trained(shape, Settings(r=3, projector="lora")) == sum(opened)
    wrapped.save_pretrained(tmp_path)
    check_as_vllm_does(tmp_path, plain)


def test_a_projector_without_linear_layers_is_refused() -> None:
    model, _ = build("gemma3")
    with pytest.raises(TrainingError) as caught:
        lora_config(model, REGION, projector="lora")
    assert str(caught.value) == (
        "the projector has no linear layer that LoRA could adapt\n"
        "  allowed: train.projector frozen or full\n"
        "  next:    use --set train.projector=full"
    )


def test_the_projector_alone_by_adapters(tiny_llava: Loaded) -> None:
    none = Region(layers=(), num_layers=4, spec="none")
    config = lora_config(tiny_llava.model, none, projector="lora")
    names = {f"model.multi_modal_projector.linear_{number}" for number in (1, 2)}
    assert (set(config.target_modules), config.modules_to_save) == (names, None)


def test_parts_that_do_not_fit_the_model(tiny_llava: Loaded) -> None:
    with pytest.raises(TrainingError, match="projector='half'"):
        lora_config(tiny_llava.model, _region(1), projector="half")  # type: ignore[arg-type]
    wrapped = peft.get_peft_model(tiny_llava.model, lora_config(tiny_llava.model, _region(1), projector="frozen"))
    for part in ("full", "lora"):
        with pytest.raises(TrainingError) as caught:
            apply_region(wrapped, _region(1), "lora", part)  # type: ignore[arg-type]
        assert f"projector={part!r}, and the model has nothing to train so in its projector" in str(caught.value)


def test_it_is_forecast_to_take_less_than_the_whole_projector() -> None:
    model, _ = build("llava")
    shape = model_shape(Blueprint(model, find_anatomy(model)))
    frozen, lora, full = (forecast(shape, REGION, Settings(r=2, projector=part)) for part in ("frozen", "lora", "full"))
    assert frozen.memory.states < lora.memory.states < full.memory.states
    assert frozen.milliseconds <= lora.milliseconds <= full.milliseconds
