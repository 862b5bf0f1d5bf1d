"""QLoRA: what goes to 4 bits, errors where it can't run, and a whole training where bitsandbytes is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from striate.artifacts import Region
from striate.config import LoraSection, MachineSection, TrainSection, parse_config
from striate.data.reading import read_samples
from striate.errors import ConfigError, ModelError, TrainingError
from striate.models.io import quantized
from striate.models.io.load import Loaded, load_model
from striate.models.structure.anatomy import find_anatomy, layer_of
from striate.models.structure.meta_model import Blueprint
from striate.models.trainable.apply import apply_region, is_quantized, lora_config
from striate.models.trainable.counts import count_trainable
from striate.pipeline import Flow
from striate.pipeline.validate import check_run
from striate.stages.train import train

REGION = Region(layers=(1, 3), num_layers=4, spec="ids:1,3")
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes (the extra `qlora`)"
)


def test_refused_without_cuda(tiny_llava_dir: Path) -> None:
    with pytest.raises(ModelError, match="qlora needs a CUDA device, and the device is cpu") as caught:
        quantized.load_quantized(tiny_llava_dir, device="cpu")
    assert "--set train.method=lora" in str(caught.value)


def test_refused_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="needs bitsandbytes, which is not installed") as caught:
        quantized.check_quantization(torch.device("cuda"))
    assert 'pip install "striate[qlora]"' in str(caught.value)


def test_plain_weights_refused(tiny_llava: Loaded, pack_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the model's weights are not in 4 bits"):
        _train(tiny_llava, pack_dir, tmp_path)
    wrapped = peft.get_peft_model(tiny_llava.model, lora_config(tiny_llava.model, REGION, r=2))
    with pytest.raises(TrainingError, match="method qlora needs weights in 4 bits"):
        apply_region(wrapped, REGION, "qlora")


def test_dtype_without_effect_refused() -> None:
    raw = {"model": {"path": "a/b"}, "data": {"train": ["x"]}, "train": {"method": "qlora"}}
    assert parse_config(raw).train.method == "qlora"
    with pytest.raises(ConfigError, match=r"qlora computes in bfloat16, not in machine\.dtype float32"):
        parse_config(raw, ["machine.dtype=float32"])


@pytest.mark.parametrize("model_type", ["llava", "qwen2_5_vl", "gemma3", "internvl"])
def test_only_decoder_layers_go_to_4_bits(model_type: str) -> None:
    from transformers.quantizers.quantizers_utils import should_convert_module

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(model_type))
    plan = Blueprint(model, find_anatomy(model))
    kept = quantized.decoder_quantization(plan).llm_int8_skip_modules
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            inside = layer_of(plan.anatomy, name) is not None
            assert should_convert_module(name, kept) == inside, name


def test_the_flow_refuses_before_its_first_stage(tiny_llava_dir: Path, pack_dir: Path, tmp_path: Path) -> None:
    raw = {
        "model": {"path": str(tiny_llava_dir)},
        "data": {"train": [str(pack_dir)]},
        "train": {"method": "qlora"},
        "machine": {"device": "cpu"},
    }
    config = parse_config(raw)
    with pytest.raises(ModelError, match="qlora needs a CUDA device"):
        Flow(config, tmp_path / "run").everything()
    assert not (tmp_path / "run" / "scores.json").exists()
    with pytest.raises(ModelError, match="qlora needs a CUDA device"):
        list(check_run(config))


class PackedWeight(torch.nn.Parameter):
    """What bitsandbytes marks its weights with."""

    quant_state = None


class PackedLinear(torch.nn.Linear):
    """A linear layer with a forward pass of its own, as those in 4 bits have."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(input, self.weight, self.bias)


def test_linear_layers_in_4_bits_get_adapters(tiny_llava: Loaded) -> None:
    plain = lora_config(tiny_llava.model, REGION, r=2).target_modules
    for module in tiny_llava.model.model.language_model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            module.__class__ = PackedLinear
            module.weight.__class__ = PackedWeight
    assert lora_config(tiny_llava.model, REGION, r=2).target_modules == plain
    assert len(plain) == 14


@needs_bitsandbytes
def test_training(tiny_llava_dir: Path, pack_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way on the CPU: bitsandbytes has a slow path there, which striate does not offer."""
    monkeypatch.setattr(quantized, "check_quantization", lambda device: None)
    loaded = quantized.load_quantized(tiny_llava_dir, device="cpu")
    assert is_quantized(loaded.model)
    assert not is_quantized(load_model(tiny_llava_dir).model)
    kinds = {name: type(module).__name__ for name, module in loaded.model.named_modules()}
    anatomy = find_anatomy(loaded.model)
    for name, kind in kinds.items():
        if "Linear" in kind:
            assert (kind == "Linear4bit") == (layer_of(anatomy, name) is not None), name
    plain = count_trainable(load_model(tiny_llava_dir).model, REGION, "full").total
    assert count_trainable(loaded.model, REGION, "qlora").total == plain
    before = {name: value.clone() for name, value in loaded.model.named_parameters()}
    record = _train(loaded, pack_dir, tmp_path)
    assert record.trainable.method == "qlora"
    assert "received finite gradients" in record.proof
    assert record.last_loss < record.first_loss
    after = dict(loaded.model.named_parameters())
    for name, value in before.items():
        kept = name.replace("_proj.weight", "_proj.base_layer.weight")
        copied = name.replace("multi_modal_projector.", "multi_modal_projector.original_module.")
        same = next(one for one in (kept, name, copied) if one in after)
        assert torch.equal(after[same], value), name
    # The adapter loads on the plain base, and merges.
    merged = load_model(tmp_path / "out", merge=True)
    assert not is_quantized(merged.model)


def _train(loaded: Loaded, pack_dir: Path, tmp_path: Path, **changes: Any) -> Any:
    settings: dict[str, Any] = {"lr": 5e-3, "epochs": 4, "batch_size": 4, "max_length": 96, **changes}
    return train(
        loaded.model,
        loaded.processor,
        REGION,
        read_samples(pack_dir, limit=4),
        TrainSection(method="qlora", lora=LoraSection(r=4, alpha=8), **settings),
        MachineSection(micro_batch=2),
        seed=0,
        out=tmp_path / "out",
        work_dir=tmp_path / "work",
        log=tmp_path / "log.jsonl",
        base_path=str(tmp_path / "tiny-llava"),
    )
