"""Layers of the vision encoder train: in full or by adapters, proved, resumed, compiled, packed, and saved."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from training_kit import Killed, Run, Said, losses, runner, weights
from transformers import LlavaForConditionalGeneration
from typer.testing import CliRunner

from striate.artifacts import Region
from striate.cli import app
from striate.config import LoraSection, MachineSection, TrainSection, parse_config
from striate.data.collate import Collator
from striate.data.reading import read_samples
from striate.data.samples import Sample
from striate.errors import ConfigError, ModelError, SpecError, TrainingError
from striate.models.io.load import Loaded, load_model
from striate.training import session
from striate.training.batching.micro_batches import touch_of
from striate.training.distributed.ranks import Ranks
from striate.training.precision import FrozenModules
from striate.training.schedule import vision_rate

REGION = Region(layers=(1, 3), num_layers=4, spec="ids:1,3")
BASE = TrainSection(
    batch_size=4,
    lr=1e-2,
    projector_lr=1e-3,
    vision_lr=5e-3,
    warmup_ratio=0,
    scheduler="constant",
    max_length=96,
    max_steps=3,
    save_steps=1,
    lora=LoraSection(r=4, alpha=8, dropout=0.0),
)
PLAIN_LORA = BASE.model_copy(update={"vision": "lora", "projector": "lora", "vision_layers": "top:1"})
COPIES = BASE.model_copy(update={"vision": "full"})
FULL = BASE.model_copy(update={"vision": "full", "method": "full", "vision_layers": "ids:1", "lr": 1e-3})
WAYS = {"adapters": PLAIN_LORA, "copies": COPIES, "full": FULL}
PROOFS = {
    "adapters": "28 tensors in 2 of 4 decoder layers and 4 tensors of the projector and 12 tensors in 1 of 2 layers",
    "copies": "28 tensors in 2 of 4 decoder layers and 4 tensors of the projector and 32 tensors in 2 of 2 layers",
    "full": "18 tensors in 2 of 4 decoder layers and 4 tensors of the projector and 16 tensors in 1 of 2 layers",
}


@pytest.fixture
def samples(pack_dir: Path) -> list[Sample]:
    return read_samples(pack_dir)


@pytest.fixture
def run(tmp_path: Path, samples: list[Sample], tiny_llava_dir: Path) -> Run:
    return partial(runner(tmp_path, samples, REGION, MachineSection(micro_batch=2)), base_path=str(tiny_llava_dir))


@pytest.mark.parametrize("way", WAYS)
def test_trained_resumed_and_reloaded(
    run: Run, tiny_llava: Loaded, tiny_llava_dir: Path, samples: list[Sample], tmp_path: Path, way: str
) -> None:
    config = WAYS[way]
    start, whole, killed, resumed = (copy.deepcopy(tiny_llava) for _ in range(4))
    record = run(whole, "whole", config)
    assert record.proof.startswith(PROOFS[way])
    with pytest.raises(KeyboardInterrupt):
        run(killed, "cut", config, progress=Killed(3))
    with pytest.raises(TrainingError, match=r"is of another training run: .*train\.vision[, ]"):
        run(copy.deepcopy(tiny_llava), "cut", BASE.model_copy(update={"vision": "frozen", "method": config.method}))
    run(resumed, "cut", config, progress=Said())
    expected, found = weights(whole.model), weights(resumed.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    rows = [json.loads(line) for line in (tmp_path / "cut" / "log.jsonl").read_text().splitlines()]
    assert {(row["lr"], row["projector_lr"], row["vision_lr"]) for row in rows} == {(config.lr, 1e-3, 5e-3)}
    trained = {row.component for row in record.trainable.components if row.trainable}
    assert trained == {"vision encoder", "projector", "decoder layer"}
    folder = tmp_path / "cut" / "checkpoint"
    batch = Collator(tiny_llava.processor, 96, train=True)(samples[:2])
    plain = LlavaForConditionalGeneration.from_pretrained(folder if way == "full" else tiny_llava_dir)
    if way != "full":
        plain = peft.PeftModel.from_pretrained(plain, folder)
    with torch.no_grad():
        wanted = resumed.model(**batch).logits
        for model in (plain.eval(), load_model(folder, device="cpu").model):
            torch.testing.assert_close(model(**batch).logits, wanted, rtol=1e-5, atol=1e-4)
        merged = load_model(folder, device="cpu", merge=True).model
    before = start.model.state_dict()
    moved = {
        name for name, tensor in merged.state_dict().items() if not torch.allclose(tensor, before[name], atol=1e-6)
    }
    layers = {name.split(".layers.")[1].split(".")[0] for name in moved if "vision_tower" in name}
    assert layers == ({"0", "1"} if way == "copies" else {"1"})
    assert all(".encoder.layers." in name for name in moved if "vision_tower" in name)


def test_a_plain_adapter_holds_nothing_but_pairs(run: Run, tiny_llava: Loaded, tmp_path: Path) -> None:
    run(tiny_llava, "run", PLAIN_LORA.model_copy(update={"max_steps": 1}))
    folder = tmp_path / "run" / "checkpoint"
    assert json.loads((folder / "adapter_config.json").read_text())["modules_to_save"] is None
    assert {".lora_A." in name or ".lora_B." in name for name in load_file(folder / "adapter_model.safetensors")} == {
        True
    }


@pytest.mark.parametrize(("way", "packing"), [("adapters", True), ("copies", False), ("full", True)])
def test_compiled_and_packed_are_the_same(
    run: Run, tiny_llava: Loaded, samples: list[Sample], tmp_path: Path, monkeypatch: Any, way: str, packing: bool
) -> None:
    monkeypatch.setattr(session, "compiled_layers", partial(session.compiled_layers, backend="eager"))
    config = WAYS[way].model_copy(update={"max_steps": 2})
    plain, said = copy.deepcopy(tiny_llava), Said()
    run(plain, "plain", config, samples=samples[:4])
    machine = {"compile": "on", "pack_tokens": 400}
    fast = config.model_copy(update={"packing": packing})
    run(tiny_llava, "fast", fast, samples=samples[:4], machine=machine, progress=said)
    assert any(line.startswith("6 of 6 layers run compiled") for line in said.said), said.said
    torch.testing.assert_close(losses(tmp_path / "fast"), losses(tmp_path / "plain"), rtol=1e-4, atol=1e-4)


def test_recomputed_is_the_same(run: Run, tiny_llava: Loaded, tmp_path: Path) -> None:
    plain = copy.deepcopy(tiny_llava)
    run(plain, "plain", COPIES)
    run(tiny_llava, "recomputed", COPIES.model_copy(update={"gradient_checkpointing": True}))
    torch.testing.assert_close(losses(tmp_path / "recomputed"), losses(tmp_path / "plain"), rtol=1e-5, atol=1e-5)


def test_a_frozen_layer_of_an_encoder_that_trains_is_recomputed_too(tiny_llava: Loaded) -> None:
    layers = tiny_llava.model.model.vision_tower.encoder.layers
    tiny_llava.model.requires_grad_(False)
    layers[0].requires_grad_(True)
    tiny_llava.model.train()
    FrozenModules(tiny_llava.model, checkpointing=True).set_eval()
    assert [layer.training for layer in layers] == [True, True]
    assert not layers[1].self_attn.training
    FrozenModules(tiny_llava.model, checkpointing=False).set_eval()
    assert [layer.training for layer in layers] == [True, False]


@pytest.mark.parametrize(
    ("vision_layers", "text"),
    [
        (
            "ids:2",
            "train.vision_layers, of 2 layers of the vision encoder: region 'ids:2' names layer 2, but the model",
        ),
        ("tops:1", "unknown selector 'tops'"),
        ("scores:block-influence:1", "train.vision_layers 'scores:block-influence:1' needs scores"),
    ],
)
def test_layers_that_there_are_not(run: Run, tiny_llava: Loaded, vision_layers: str, text: str) -> None:
    with pytest.raises(SpecError) as caught:
        run(tiny_llava, "run", COPIES.model_copy(update={"vision_layers": vision_layers}))
    assert text in str(caught.value)


def test_no_layer_of_the_encoder(run: Run, tiny_llava: Loaded) -> None:
    with pytest.raises(TrainingError, match="layers 'none' of the vision encoder are 0 of 2"):
        run(tiny_llava, "run", COPIES.model_copy(update={"vision_layers": "none"}))


def test_features_are_not_cached(run: Run, tiny_llava: Loaded) -> None:
    raw = {"model": {"path": "a/b"}, "data": {"train": ["d"]}, "train": {"vision": "full"}}
    with pytest.raises(ConfigError, match=r"cache_vision is memory and train\.vision full: features of an encoder"):
        parse_config(raw, ["machine.cache_vision=memory"])
    with pytest.raises(ModelError, match=r"cache_vision does not work with this model: its vision encoder is not"):
        run(tiny_llava, "run", COPIES, machine={"cache_vision": "memory"})


def test_samples_without_a_picture(run: Run, tiny_llava: Loaded, samples: list[Sample]) -> None:
    texts = [sample for sample in samples if not sample.images]
    with pytest.raises(TrainingError, match="the vision encoder can't train: no training sample has a picture"):
        run(tiny_llava, "run", COPIES.model_copy(update={"projector": "frozen"}), samples=texts)


def test_every_rank_has_a_picture_before_gradients_are_averaged(samples: list[Sample]) -> None:
    frozen = BASE.model_copy(update={"projector": "frozen"})
    assert touch_of(Ranks(0, 2), frozen, samples, 2) == ""
    assert touch_of(Ranks(0, 2), frozen.model_copy(update={"vision": "lora"}), samples, 2) == "last"


@pytest.mark.parametrize("processes", [1, 2])
def test_every_batch_has_a_picture_where_no_layer_of_the_llm_trains(samples: list[Sample], processes: int) -> None:
    assert touch_of(Ranks(0, processes), BASE, samples, 0) == "all"
    assert (touch_of(Ranks(0, processes), BASE, samples, 2) == "") is (processes == 1)


def test_the_rate_follows_the_way() -> None:
    rates = {way: vision_rate(TrainSection(vision=way)) for way in ("lora", "full")}  # type: ignore[arg-type]
    assert rates == {"lora": 2e-5, "full": 2e-6}
    assert vision_rate(TrainSection(vision="full", vision_lr=1e-4)) == 1e-4


@pytest.mark.parametrize("verb", ["check", "run"])
def test_wrong_layers_are_found_before_anything_is_computed(
    tiny_llava_dir: Path, pack_dir: Path, tmp_path: Path, verb: str
) -> None:
    config = {"model": {"path": str(tiny_llava_dir)}, "data": {"train": [str(pack_dir)]}}
    train = {"vision": "lora", "vision_layers": "ids:7"}
    (tmp_path / "run.yaml").write_text(json.dumps({**config, "train": train}))
    where = [] if verb == "check" else ["--out", str(tmp_path / "run")]
    shown = CliRunner().invoke(app, [verb, str(tmp_path / "run.yaml"), *where])
    assert shown.exit_code == 1
    assert "train.vision_layers, of 2 layers of the vision encoder" in shown.output
    assert not (tmp_path / "run" / "scores.json").exists()
