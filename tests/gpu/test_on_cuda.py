"""What only a CUDA device shows: autocast, recomputed layers, rounding of saved models, batches of any size."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch

from striate.artifacts import Region
from striate.config import EvaluateSection, LoraSection, MachineSection, TrainSection
from striate.data.collate import Collator
from striate.data.reading import read_samples
from striate.errors import ModelError
from striate.models.io.load import load_model
from striate.models.io.save import save_model
from striate.models.structure.anatomy import decoder_layers, find_anatomy, layer_of
from striate.models.surgery.remove_layers import remove_layers
from striate.models.surgery.roundtrip_check import self_test
from striate.models.trainable.apply import apply_region, is_quantized, lora_config
from striate.models.trainable.gradient_proof import prove_trainable
from striate.stages.evaluate import evaluate
from striate.stages.train import train
from striate.tasks.packs.reader import read_pack
from striate.training.loss import answer_loss
from striate.training.precision import FrozenModules, MasterWeights, checkpointed

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = "cuda"
REGION = Region(layers=(1, 3), num_layers=4, spec="ids:1,3")


def on_device(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def opened(loaded: Loaded, method: str, dtype: torch.dtype) -> Any:
    """Return a copy of the model with the region open, as the train stage leaves it before step 1."""
    model: Any = copy.deepcopy(loaded.model).to(DEVICE, dtype)
    torch.manual_seed(0)
    if method == "lora":
        model = peft.get_peft_model(model, lora_config(model, REGION, r=4, alpha=8))
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.02)
    apply_region(model, REGION, method)
    MasterWeights(model)
    return model.train()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_bfloat16_step_with_proof(tiny_llava: Loaded, pack_dir: Path, tmp_path: Path, method: Any) -> None:
    """Autocast trains what was proved, leaves all else as it was to the bit, and gives bfloat16 back."""
    model = copy.deepcopy(tiny_llava.model).to(DEVICE, torch.bfloat16)
    before = {name: value.clone() for name, value in model.named_parameters()}
    record = train(
        model,
        tiny_llava.processor,
        REGION,
        read_samples(pack_dir, limit=8),
        TrainSection(method=method, lora=LoraSection(r=4, alpha=8), batch_size=4, max_steps=3, lr=5e-3, max_length=96),
        MachineSection(micro_batch=2),
        seed=0,
        out=tmp_path / "out",
        work_dir=tmp_path / "work",
        log=tmp_path / "log.jsonl",
        base_path="base",
    )
    assert "received finite gradients" in record.proof
    assert "2 of 4 decoder layers" in record.proof
    after = {name.replace(".base_layer", ""): value for name, value in model.named_parameters()}
    moved = {name for name, value in before.items() if name in after and not torch.equal(after[name], value)}
    layers = {name.split("layers.")[1].split(".")[0] for name in moved if "language_model.layers." in name}
    assert layers == ({"1", "3"} if method == "full" else set())
    assert not any("vision" in name or "embed" in name or "lm_head" in name for name in moved)
    if method == "full":
        assert {value.dtype for value in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointing_gives_the_same_gradients(
    tiny_llava: Loaded, pack_dir: Path, method: str, dtype: torch.dtype
) -> None:
    batch = on_device(Collator(tiny_llava.processor, 96, train=True)(read_samples(pack_dir, limit=4)))
    found: list[dict[str, torch.Tensor]] = []
    for checkpointing in (False, True):
        model = opened(tiny_llava, method, dtype)
        with checkpointed(model, checkpointing):
            FrozenModules(model, checkpointing).set_eval()
            with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype is torch.bfloat16):
                prove_trainable(model, REGION, batch)
                torch.manual_seed(7)
                loss = answer_loss(model, batch)
            loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    kept, recomputed = found
    assert kept.keys() == recomputed.keys()
    assert kept
    tolerance = 1e-4 if dtype is torch.float32 else 2e-2
    for name, gradient in kept.items():
        difference = float((recomputed[name] - gradient).abs().max())
        assert difference <= tolerance * max(float(gradient.abs().max()), 1e-6), name


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes (the extra `qlora`)")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_qlora(tiny_llava_dir: Path, pack_dir: Path, tmp_path: Path, checkpointing: bool) -> None:
    from striate.models.io.quantized import load_quantized

    loaded = load_quantized(tiny_llava_dir, device=DEVICE)
    assert is_quantized(loaded.model)
    anatomy = find_anatomy(loaded.model)
    named = loaded.model.named_parameters()
    before = {name: value.clone() for name, value in named if layer_of(anatomy, name) is not None}
    config = TrainSection(
        method="qlora",
        lora=LoraSection(r=4, alpha=8),
        batch_size=4,
        max_steps=8,
        lr=5e-3,
        max_length=96,
        gradient_checkpointing=checkpointing,
    )
    record = train(
        loaded.model,
        loaded.processor,
        REGION,
        read_samples(pack_dir, limit=4),
        config,
        MachineSection(micro_batch=2),
        seed=0,
        out=tmp_path / "out",
        work_dir=tmp_path / "work",
        log=tmp_path / "log.jsonl",
        base_path=str(tiny_llava_dir),
    )
    assert "received finite gradients" in record.proof
    assert record.last_loss < record.first_loss
    after = dict(loaded.model.named_parameters())
    for name, value in before.items():
        wrapped = name.replace("_proj.weight", "_proj.base_layer.weight")
        assert torch.equal(after[wrapped if wrapped in after else name], value), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_self_test_after_pruning(tiny_llava_dir: Path, pack_dir: Path, tmp_path: Path, dtype: str) -> None:
    """Rounding of the device passes, a changed weight does not."""
    loaded = load_model(tiny_llava_dir, device=DEVICE, dtype=dtype)
    model = loaded.model
    remove_layers(model, [2])
    inputs = Collator(loaded.processor, 96, train=False).encode_prompts(read_samples(pack_dir, limit=3))
    save_model(model, loaded.processor, tmp_path / "pruned")
    found = self_test(model, tmp_path / "pruned", inputs, loaded.processor)
    assert found.cached_equals_uncached
    with torch.no_grad():
        decoder_layers(model)[1].mlp.down_proj.weight.mul_(1.5)
    with pytest.raises(ModelError, match="is not the one in memory"):
        self_test(model, tmp_path / "pruned", inputs)


def test_answers_do_not_depend_on_the_batch(tiny_llava: Loaded, pack_dir: Path) -> None:
    model = copy.deepcopy(tiny_llava.model).to(DEVICE)
    pack = read_pack(pack_dir)
    found = []
    for size in (1, 3, 32):
        _, predictions = evaluate(
            model,
            tiny_llava.processor,
            [pack],
            label="start",
            model_name="tiny",
            config=EvaluateSection(max_new_tokens=8),
            machine=MachineSection(eval_batch=size),
        )
        found.append(predictions)
    assert len(found[0]) == len(pack.items) > 20
    assert found[0] == found[1] == found[2]
