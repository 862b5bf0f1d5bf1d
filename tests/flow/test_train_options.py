"""Training with frozen matrices in 8-bit integers, and with AdamW's moments in 8 bits: what stays, resuming, errors."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from training_kit import Run, losses, runner, weights

from striate.artifacts import Region
from striate.config import LoraSection, MachineSection, ResampleSection, TrainSection
from striate.data.reading import read_samples
from striate.errors import TrainingError
from striate.models.io.load import Loaded
from striate.training import optimizers
from striate.training.distributed.sharding import check_sharding
from striate.training.metrics.metrics_log import MetricsLog
from striate.training.optimizers import check_optimizer
from striate.training.trainer import RegionTrainer

REGION = Region(layers=(1, 3), num_layers=4, spec="ids:1,3")
FULL = TrainSection(method="full", batch_size=4, epochs=2, lr=1e-3, warmup_ratio=0, max_length=96, save_steps=1)
LORA = FULL.model_copy(update={"method": "lora", "lr": 1e-2, "lora": LoraSection(r=4, alpha=8, dropout=0.0)})
SMALL = FULL.model_copy(update={"optimizer": "adamw-8bit"})
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes (the extra `8bit`)"
)


@pytest.fixture
def run(tmp_path: Path, pack_dir: Path) -> Run:
    return runner(tmp_path, read_samples(pack_dir), REGION, MachineSection(micro_batch=2))


def interrupt(patch: pytest.MonkeyPatch, step: int) -> None:
    """Interrupt training at the end of a step."""
    original = MetricsLog.write

    def write(self: MetricsLog, done: int, *args: Any, **more: Any) -> None:
        original(self, done, *args, **more)
        if done == step:
            raise KeyboardInterrupt

    patch.setattr(MetricsLog, "write", write)


@pytest.mark.parametrize("config", [FULL, LORA], ids=["full", "lora"])
def test_integers_train_nearly_the_same_and_frozen_weights_stay(
    run: Run, tiny_llava: Loaded, tmp_path: Path, config: TrainSection, listener: Any
) -> None:
    plain, other = copy.deepcopy(tiny_llava), copy.deepcopy(tiny_llava)
    run(plain, "plain", config)
    progress = listener()
    run(other, "int8", config.model_copy(update={"frozen": "int8"}), progress=progress)
    assert "14 frozen linear layers are held in 8-bit integers while training" in progress.said
    first, second = losses(tmp_path / "plain"), losses(tmp_path / "int8")
    assert not torch.equal(first, second)
    torch.testing.assert_close(second, first, rtol=0.02, atol=0.02)
    before, after = weights(tiny_llava.model), weights(other.model)
    trained = {name for name, one in other.model.named_parameters() if one.requires_grad}
    for name, tensor in after.items():
        if name not in trained and "lora_" not in name and "modules_to_save" not in name:
            old = name.replace("base_model.model.", "").replace(".base_layer", "").replace(".original_module", "")
            assert torch.equal(tensor, before[old]), name


@pytest.mark.parametrize("fails", [False, True])
def test_the_models_cache_is_as_it_was_afterwards(
    run: Run, tiny_llava: Loaded, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Trainer switches the cache off, and must not leave it so, nor leave a setting that was not there."""
    model = tiny_llava.model
    before = "use_cache" in vars(model.config), getattr(model.config, "use_cache", None)
    if fails:
        interrupt(monkeypatch, 1)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_llava, "out", FULL)
    else:
        run(tiny_llava, "out", FULL)
    assert before == ("use_cache" in vars(model.config), getattr(model.config, "use_cache", None))
    assert not any(parameter.grad is not None for parameter in model.parameters())


@pytest.fixture
def in_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tensors of 16 values have 8-bit moments: those of the tiny LLaVA are too small otherwise."""
    optim = importlib.import_module("bitsandbytes.optim")
    whole = optim.AdamW

    class Small(whole):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "min_8bit_size": 16})

    Small.__module__ = whole.__module__
    monkeypatch.setattr(optim, "AdamW", Small)


@needs_bitsandbytes
@pytest.mark.usefixtures("in_8_bits")
def test_moments_in_8_bits(run: Run, tiny_llava: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    original = RegionTrainer.create_optimizer

    def create(self: RegionTrainer, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        seen["optimizer"] = original(self, model)
        return seen["optimizer"]

    monkeypatch.setattr(RegionTrainer, "create_optimizer", create)
    run(copy.deepcopy(tiny_llava), "plain", FULL)
    other = copy.deepcopy(tiny_llava)
    run(other, "small", SMALL)
    optimizer = seen["optimizer"]
    assert "bitsandbytes" in type(optimizer).__module__
    assert [group["name"] for group in optimizer.param_groups] == ["projector", "region"]
    states = list(optimizer.state.values())
    assert states
    assert all(state["state1"].dtype is state["state2"].dtype is torch.uint8 for state in states)
    first, second = losses(tmp_path / "plain"), losses(tmp_path / "small")
    assert not torch.equal(first, second)
    torch.testing.assert_close(second, first, rtol=0.02, atol=0.02)
    frozen = [name for name, one in other.model.named_parameters() if not one.requires_grad]
    assert all(torch.equal(weights(other.model)[name], weights(tiny_llava.model)[name]) for name in frozen)


@needs_bitsandbytes
@pytest.mark.usefixtures("in_8_bits")
@pytest.mark.parametrize("state", [None, "keep", "drop"])
def test_resumed_is_uninterrupted_with_8_bits(run: Run, tiny_llava: Loaded, state: str | None) -> None:
    turns = {"resample": ResampleSection.model_validate({"active": 1, "every": 2, "state": state})} if state else {}
    config = SMALL.model_copy(update=turns)
    whole, killed, resumed = (copy.deepcopy(tiny_llava) for _ in range(3))
    run(whole, "whole", config)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            run(killed, "cut", config)
    torch.manual_seed(99)
    run(resumed, "cut", config)
    expected = weights(whole.model)
    for name, tensor in weights(resumed.model).items():
        assert torch.equal(tensor, expected[name]), name


def test_missing_bitsandbytes_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    with pytest.raises(TrainingError) as caught:
        check_optimizer(SMALL, torch.device("cpu"))
    text = str(caught.value)
    assert "train.optimizer adamw-8bit needs bitsandbytes, which is not installed" in text
    assert 'pip install "striate[8bit]"' in text
    check_optimizer(FULL, torch.device("cpu"))


def test_a_device_without_kernels_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise RuntimeError("no kernel\nlong story")

    monkeypatch.setattr(optimizers, "find_spec", lambda name: name)
    monkeypatch.setattr(optimizers, "import_module", missing)
    with pytest.raises(TrainingError, match="adamw-8bit does not work on cpu: RuntimeError: no kernel") as caught:
        check_optimizer(SMALL, torch.device("cpu"))
    assert "long story" not in str(caught.value)


def test_an_optimizer_that_does_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lazy:
        class optim:  # noqa: N801
            AdamW = staticmethod(lambda *args, **kwargs: torch.optim.SGD(args[0], lr=0.0))

    monkeypatch.setattr(optimizers, "find_spec", lambda name: name)
    monkeypatch.setattr(optimizers, "import_module", lambda name: Lazy)
    with pytest.raises(TrainingError, match=r"a step of 0.5 moved weights by 0"):
        check_optimizer(SMALL, torch.device("cpu"))


def test_sharded_weights_refuse_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match=r"train.optimizer adamw-8bit with weights sharded by deepspeed"):
        check_sharding(SMALL)
    with pytest.raises(TrainingError, match=r"train.frozen int8 with weights sharded by deepspeed"):
        check_sharding(FULL.model_copy(update={"frozen": "int8"}))
    check_sharding(FULL)
