"""Training with compiled layers and a memory budget: the same losses, weights and checkpoints as without."""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from training_kit import Said
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from striate.artifacts import Region, TrainRecord
from striate.config import LoraSection, MachineSection, TrainSection
from striate.data.collate import Collator
from striate.data.reading import read_samples
from striate.data.samples import Sample
from striate.errors import TrainingError
from striate.models.forecast.layer_shapes import ModelShape, model_shape
from striate.models.forecast.memory import forecast_memory
from striate.models.forecast.settings import GIB, Settings
from striate.models.io.load import Loaded, load_model
from striate.models.structure.anatomy import decoder_layers, find_anatomy
from striate.models.structure.meta_model import Blueprint
from striate.stages.train import train
from striate.training import session
from striate.training.compile.memory_budget import largest_micro_batch, within_budget
from striate.training.job import TrainingJob
from striate.training.metrics.metrics_log import MetricsLog
from striate.training.schedule import Plan

REGION = Region(layers=(1, 3), num_layers=4, spec="ids:1,3")
FULL = TrainSection(method="full", batch_size=4, lr=1e-3, projector_lr=5e-4, warmup_ratio=0, max_length=96, max_steps=2)
LORA = FULL.model_copy(update={"method": "lora", "lora": LoraSection(r=4, alpha=8, dropout=0.0)})
LLAVA_7B = LlavaConfig(
    text_config=LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32064
    ),
    vision_config=CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    ),
    image_token_index=7,
)
logging.getLogger("torch.__trace").propagate = False
Run = Callable[..., TrainRecord]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The front half of the compiler: graphs are captured, and run by kernels of PyTorch."""
    monkeypatch.setattr(session, "compiled_layers", partial(session.compiled_layers, backend="eager"))


@pytest.fixture
def samples(pack_dir: Path) -> list[Sample]:
    # Few lengths: each compiles every kind of layer again, up to the second.
    return read_samples(pack_dir)[:4]


@pytest.fixture
def run(tmp_path: Path, samples: list[Sample], tiny_llava_dir: Path) -> Run:
    def start(loaded: Loaded, config: TrainSection, name: str, **machine: Any) -> tuple[TrainRecord, list[float], Any]:
        lines = Said()
        record = train(
            loaded.model,
            loaded.processor,
            REGION,
            samples,
            config,
            MachineSection(micro_batch=2, **machine),
            seed=0,
            out=tmp_path / name / "checkpoint",
            work_dir=tmp_path / name / "work",
            log=tmp_path / name / "train_log.jsonl",
            base_path=str(tiny_llava_dir),
            progress=lines,  # type: ignore[arg-type]
        )
        rows = (tmp_path / name / "train_log.jsonl").read_text().splitlines()
        return record, [json.loads(row)["loss"] for row in rows], lines.said

    return start


def same(one: torch.nn.Module, other: torch.nn.Module, **limits: float) -> None:
    expected = other.state_dict()
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], msg=name, **limits)


@pytest.mark.parametrize("config", [FULL, LORA], ids=["full", "lora"])
def test_compiled_training_is_the_plain_one(tiny_llava: Loaded, run: Run, tmp_path: Path, config: TrainSection) -> None:
    other = copy.deepcopy(tiny_llava)
    forwards = [layer.forward for layer in decoder_layers(other.model)]
    _, plain, _ = run(tiny_llava, config, "plain", compile="off")
    _, compiled, said = run(other, config, "fast", compile="on")
    assert compiled == pytest.approx(plain, rel=1e-6)
    assert any(re.match(r"(\d+) of \1 layers run compiled, as 3 kinds", line) for line in said), said
    same(
        load_model(tmp_path / "fast/checkpoint").model,
        load_model(tmp_path / "plain/checkpoint").model,
        rtol=1e-4,
        atol=1e-6,
    )
    assert [layer.forward for layer in decoder_layers(other.model)] == forwards
    assert not any("forward" in vars(layer) for layer in decoder_layers(other.model))


def test_packed_rows_compiled(tiny_llava: Loaded, run: Run) -> None:
    other = copy.deepcopy(tiny_llava)
    config = FULL.model_copy(update={"packing": True})
    _, plain, _ = run(tiny_llava, config, "plain", compile="off", pack_tokens=100)
    _, compiled, said = run(other, config, "fast", compile="on", pack_tokens=100)
    assert compiled == pytest.approx(plain, rel=1e-5)
    assert any(re.match(r"(\d+) of \1 layers run compiled, as 3 kinds", line) for line in said), said


def test_resumed_is_uninterrupted(tiny_llava: Loaded, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout: the masks of the steps after an interruption are those of a training without one."""
    other, third = copy.deepcopy(tiny_llava), copy.deepcopy(tiny_llava)
    config = LORA.model_copy(update={"lora": LoraSection(r=4, alpha=8, dropout=0.2), "save_steps": 1})
    run(tiny_llava, config, "whole", compile="on")
    write = MetricsLog.write

    def interrupt(self: MetricsLog, step: int, *args: Any, **more: Any) -> None:
        if step == 2:
            raise KeyboardInterrupt
        write(self, step, *args, **more)

    monkeypatch.setattr(MetricsLog, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(other, config, "parts", compile="on")
    monkeypatch.setattr(MetricsLog, "write", write)
    run(third, config, "parts", compile="on")
    same(third.model, tiny_llava.model, rtol=0, atol=0)


def test_recomputed_layers_change_nothing(tiny_llava: Loaded, run: Run) -> None:
    """Not one bit: the same operations on the same numbers, run a second time, the same values dropped."""
    other = copy.deepcopy(tiny_llava)
    config = LORA.model_copy(update={"lora": LoraSection(r=4, alpha=8, dropout=0.2)})
    run(tiny_llava, config, "plain", compile="off")
    with pytest.raises(TrainingError) as error:
        run(copy.deepcopy(other), config, "least", compile="off", memory_budget=1e-9)
    assert str(error.value).startswith("machine.memory_budget is 1e-09 GiB, and training is forecast to need")
    assert "with every decoder layer recomputed" in str(error.value)
    shape = model_shape(Blueprint(other.model, find_anatomy(other.model)))
    # Between nothing recomputed and everything: what the batch of this test needs at least, and a little.
    budget = 1.02 * forecast_memory(shape, REGION, Settings(batch=2, text_tokens=92, r=4, checkpointing=True)).peak_gib
    _, _, said = run(other, config, "small", compile="off", memory_budget=1.05 * budget)
    assert any("of 4 decoder layers are recomputed to stay below" in line for line in said), said
    same(other.model, tiny_llava.model, rtol=0, atol=0)


def test_a_budget_and_checkpointing_of_all_layers(tiny_llava: Loaded, run: Run) -> None:
    with pytest.raises(TrainingError) as error:
        run(tiny_llava, FULL.model_copy(update={"gradient_checkpointing": True}), "both", memory_budget=10.0)
    assert "machine.memory_budget and train.gradient_checkpointing are both set" in str(error.value)


def test_checkpointing_of_all_layers_compiled(tiny_llava: Loaded, run: Run) -> None:
    other = copy.deepcopy(tiny_llava)
    run(tiny_llava, FULL, "plain", compile="off")
    run(other, FULL.model_copy(update={"gradient_checkpointing": True}), "both", compile="on")
    same(other.model, tiny_llava.model, rtol=1e-4, atol=1e-6)


def test_fewest_layers_within_the_budget() -> None:
    """More memory, fewer recomputed layers; the forecast stays below; frozen layers go first, from the bottom up."""
    shape = vicuna_like()
    region = Region(layers=tuple(range(0, 32, 4)), num_layers=32, spec="uniform:25%")
    settings = Settings(batch=4, text_tokens=200, answer_tokens=100, fused=True)
    most = forecast_memory(shape, region, settings).peak_gib
    frozen = [index for index in range(32) if index not in region.layers]
    counts = []
    for budget in (18.0, 20.0, 21.0, 22.0, 23.0, 1.02 * most):
        chosen = within_budget(shape, region, settings, budget)
        assert forecast_memory(shape, region, chosen).peak / GIB <= budget
        count = len(chosen.recomputed)
        assert chosen.recomputed == set((frozen + list(region.layers))[:count])
        counts.append(count)
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0


def test_the_largest_micro_batch_counts(tiny_llava: Loaded, pack_dir: Path) -> None:
    """A budget must hold in the step with the longest samples, not in the average or the shortest one."""
    collator = Collator(tiny_llava.processor, 96, train=True)
    samples = read_samples(pack_dir)
    lengths = sorted(item.length for item in collator.encode_each(samples))
    assert lengths[0] < lengths[-1]
    shape = model_shape(Blueprint(tiny_llava.model, find_anatomy(tiny_llava.model)))
    machine = MachineSection(micro_batch=2)
    plan = Plan.of(len(samples), FULL, machine)
    job = TrainingJob(REGION, samples, collator, FULL, machine, seed=0, base_path="", plan=plan)
    settings = largest_micro_batch(shape, job)
    assert settings.batch == 2
    assert settings.text_tokens + shape.image_tokens == lengths[-1]


def vicuna_like() -> ModelShape:
    """Return LLaVA-1.5-7B's shape."""
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(LLAVA_7B)
    return model_shape(Blueprint(model, find_anatomy(model)))
