"""Frozen matrices in 8-bit integers and AdamW's moments in 8 bits where they are meant to run."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from striate.artifacts import Region
from striate.config import LoraSection, MachineSection, TrainSection
from striate.data.reading import read_samples
from striate.models.trainable.apply import apply_region, lora_config
from striate.stages.train import train
from striate.training.compile.regional import compiled_layers
from striate.training.metrics.metrics_log import MetricsLog
from striate.training.optimizers import SMALLEST, check_optimizer
from striate.training.precision import FrozenModules, MasterWeights
from striate.training.quantization.int8_linear import frozen_in_int8

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes (the extra `8bit`)"
)
DEVICE = "cuda"
REGION = Region(layers=(1, 3), num_layers=4, spec="ids:1,3")
LORA = TrainSection(lora=LoraSection(r=4, alpha=8, dropout=0.0), batch_size=4, max_steps=4, lr=5e-3, max_length=96)


def wide_model() -> Any:
    """Return a LLaVA of 4 decoder layers, 20 MB of bfloat16 matrices each, with adapters on two."""
    torch.manual_seed(0)
    text = LlamaConfig(
        hidden_size=1024, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=8, vocab_size=100
    )
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    base = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_index=99))
    model: Any = base.to(DEVICE, torch.bfloat16)
    model = peft.get_peft_model(model, lora_config(model, REGION, r=8, dropout=0.0))
    apply_region(model, REGION, "lora")
    MasterWeights(model)
    FrozenModules(model.train(), False).set_eval()
    # Without pictures the projector has no gradient; the stream has one, so that frozen layers are crossed.
    model.enable_input_require_grads()
    return model


@pytest.mark.parametrize("compiled", [False, True])
def test_integers_take_less_memory_and_no_matrix_is_kept(compiled: bool) -> None:
    model = wide_model()
    ids = torch.randint(0, 90, (2, 64), device=DEVICE)
    held, kept, losses = [], [], []
    for frozen in (contextlib.nullcontext, lambda: frozen_in_int8(model, REGION)):
        said: list[str] = []
        layers = compiled_layers(model, said.append) if compiled else contextlib.nullcontext()
        with frozen(), layers:  # type: ignore[operator]
            for turn in range(3):
                model.zero_grad()
                torch.cuda.synchronize()
                before = torch.cuda.memory_allocated()
                with torch.autocast(DEVICE, torch.bfloat16):
                    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                torch.cuda.synchronize()
                if turn == 2:
                    held.append(before)
                    kept.append(torch.cuda.memory_allocated() - before)
                    losses.append(float(loss))
                loss.backward()
        assert not any("uncompiled" in line for line in said), said
    matrices = 2 * 4 * 1024 * 1024 + 2 * 3 * 1024 * 2048
    # Half of two frozen layers' bytes, less scales; whole megabytes, as the allocator rounds what is above one.
    assert held[0] - held[1] > 0.45 * 2 * matrices
    # A kept bfloat16 matrix is 2 MB at least.
    assert kept[1] < kept[0] + 2**20
    assert abs(losses[0] - losses[1]) < 0.05


@pytest.mark.parametrize("compiled", ["off", "on"])
def test_training_with_integers(tiny_llava: Loaded, pack_dir: Path, tmp_path: Path, compiled: Any) -> None:
    found = []
    for frozen in ("exact", "int8"):
        model = copy.deepcopy(tiny_llava.model).to(DEVICE, torch.bfloat16)
        before = {name: value.clone() for name, value in model.named_parameters()}
        train(
            model,
            tiny_llava.processor,
            REGION,
            read_samples(pack_dir, limit=8),
            LORA.model_copy(update={"frozen": frozen}),
            MachineSection(micro_batch=2, compile=compiled),
            seed=0,
            out=tmp_path / frozen,
            work_dir=tmp_path / f"{frozen}-work",
            log=tmp_path / f"{frozen}.jsonl",
            base_path="base",
        )
        after = {name.replace(".base_layer", ""): value for name, value in model.named_parameters()}
        frozen_names = [name for name in before if name in after and "projector" not in name]
        assert frozen_names
        assert all(torch.equal(after[name], before[name]) for name in frozen_names)
        lines = (tmp_path / f"{frozen}.jsonl").read_text(encoding="utf-8").splitlines()
        found.append(torch.tensor([json.loads(line)["loss"] for line in lines]))
    torch.testing.assert_close(found[1], found[0], rtol=0.05, atol=0.05)


@needs_bitsandbytes
def test_moments_in_8_bits(tiny_llava: Loaded, pack_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted training goes on; the tiny LLaVA's tensors are let have 8-bit moments."""
    config = LORA.model_copy(update={"optimizer": "adamw-8bit", "method": "full", "save_steps": 1, "lr": 1e-3})
    check_optimizer(config, torch.device(DEVICE))
    optim = importlib.import_module("bitsandbytes.optim")
    whole, made = optim.AdamW, list[Any]()

    class Small(whole):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "min_8bit_size": 16})
            made.append(self)

    Small.__module__ = whole.__module__
    monkeypatch.setattr(optim, "AdamW", Small)
    assert SMALLEST == 4096

    def run(model: Any, name: str, optimizer: str) -> None:
        train(
            model,
            tiny_llava.processor,
            REGION,
            read_samples(pack_dir, limit=8),
            config.model_copy(update={"optimizer": optimizer}),
            MachineSection(micro_batch=2),
            seed=0,
            out=tmp_path / name,
            work_dir=tmp_path / f"{name}-work",
            log=tmp_path / f"{name}.jsonl",
            base_path="base",
        )

    models = [copy.deepcopy(tiny_llava.model).to(DEVICE, torch.bfloat16) for _ in range(4)]
    run(models[0], "plain", "adamw")
    run(models[1], "whole", "adamw-8bit")
    states = list(made[-1].state.values())
    assert states
    assert all(state["state1"].dtype is torch.uint8 and state["state1"].device.type == "cuda" for state in states)
    original = MetricsLog.write

    def write(self: MetricsLog, step: int, *args: Any, **more: Any) -> None:
        original(self, step, *args, **more)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", write)
        with pytest.raises(KeyboardInterrupt):
            run(models[2], "cut", "adamw-8bit")
    run(models[3], "cut", "adamw-8bit")
    losses = {}
    for name in ("plain", "whole", "cut"):
        lines = (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        losses[name] = torch.tensor([json.loads(line)["loss"] for line in lines])
    torch.testing.assert_close(losses["whole"], losses["plain"], rtol=0.05, atol=0.05)
    torch.testing.assert_close(losses["cut"], losses["whole"], rtol=0.02, atol=0.02)
