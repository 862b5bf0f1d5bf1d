"""Adapters of model types whose tensors transformers renames, under names that PEFT reads back as their own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from family_needs import needs
from family_zoo import NUM_LAYERS, build_model
from safetensors import safe_open

from striate.artifacts import Region
from striate.errors import ModelError
from striate.models.io.adapters import add_adapter, place_adapter
from striate.models.io.save import save_model
from striate.models.io.weights import adapter_names
from striate.models.io.weights.adapter_names import check_adapter_names
from striate.models.io.weights.stored_matrices import StoredMatrices
from striate.models.trainable.apply import lora_config

REGION = Region(layers=(1, 4), num_layers=NUM_LAYERS, spec="ids:1,4")


def saved(model_type: str, folder: Path) -> tuple[Any, Any]:
    """Save a model and an adapter of its region, every tensor of which is another; return both models."""
    needs(model_type)
    base = build_model(model_type).eval()
    base.save_pretrained(folder / "base")
    tuned = peft.get_peft_model(copy.deepcopy(base), lora_config(base, REGION, r=2, dropout=0.0))
    tuned.peft_config["default"].base_model_name_or_path = str(folder / "base")
    torch.manual_seed(1)
    for name, parameter in tuned.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter)
    save_model(tuned, None, folder / "tuned")
    return base, tuned


@pytest.mark.parametrize("model_type", ["unlimited_ocr", "mistral_large4", "deepseek_ocr2"])
def test_an_adapter_is_read_back_by_plain_peft_and_by_striate(model_type: str, tmp_path: Path) -> None:
    base, tuned = saved(model_type, tmp_path)
    expected = tuned.state_dict()
    with torch.device("meta"):
        empty = copy.deepcopy(base).to("meta")
    placed = place_adapter(empty, tmp_path / "tuned")
    plain = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "tuned")
    for again in (plain, add_adapter(base, tmp_path / "tuned"), placed):
        found = again.state_dict()
        assert found.keys() == expected.keys()
        own = [name for name in expected if ".lora_" in name or ".modules_to_save." in name]
        assert own
        assert all(torch.equal(found[name], expected[name]) for name in own)


def test_an_adapter_that_plain_peft_saved_is_placed_by_the_names_that_it_has(tmp_path: Path) -> None:
    base, tuned = saved("deepseek_ocr2", tmp_path)
    tuned.save_pretrained(tmp_path / "plain")
    with torch.device("meta"):
        empty = copy.deepcopy(base).to("meta")
    found, expected = place_adapter(empty, tmp_path / "plain").state_dict(), tuned.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected if ".lora_" in name)


def test_differences_of_weights_are_read_by_the_models_names(tmp_path: Path) -> None:
    base, tuned = saved("mistral_large4", tmp_path)
    name = next(name for name, module in tuned.named_modules() if name.endswith("layers.4.mlp.shared_experts.up_proj"))
    own = f"{name.removeprefix('base_model.model.')}.weight"
    with torch.no_grad():
        whole = tuned.merge_and_unload().get_parameter(own)
    torch.testing.assert_close(StoredMatrices(tmp_path / "tuned").read(own), whole)
    assert not torch.equal(base.get_parameter(own), whole)


def test_names_that_are_read_right_stay(tmp_path: Path) -> None:
    _, tuned = saved("llava", tmp_path)
    with safe_open(tmp_path / "tuned/adapter_model.safetensors", "pt") as file:
        assert set(file.keys()) == set(peft.get_peft_model_state_dict(tuned))


def test_an_adapter_that_peft_would_lose_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    base = build_model("llava")
    tuned = peft.get_peft_model(base, lora_config(base, REGION, r=2))
    check_adapter_names(tuned)
    monkeypatch.setattr(adapter_names, "as_peft_reads", lambda model, stored: {})
    with pytest.raises(ModelError) as caught:
        check_adapter_names(tuned)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("PEFT would not read ")
    assert lines[1:] == [
        "  allowed: a model type whose adapters PEFT reads under names of their own",
        "  next:    set train.method=full, or use another version of peft",
    ]
