"""Training with image tokens that take a constant step in layers that they skip, and what becomes of it afterwards."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from striate.artifacts import LayerScores, Region, Scores, read_document
from striate.config import LoraSection, MachineSection, TrainSection
from striate.data.reading import read_samples
from striate.errors import ModelError
from striate.models.io.load import Loaded, load_model
from striate.models.surgery.prune_checkpoint import prune_checkpoint
from striate.models.surgery.remove_layers import remove_layers
from striate.models.visual_token_skipping.rule import VisualTokenSkipping, skipping_of
from striate.models.visual_token_skipping.shift import SHIFT_FILE
from striate.models.visual_token_skipping.visual_compute import VISUAL_COMPUTE_FILE, VisualCompute, read_visual_compute
from striate.stages.prune import prune
from striate.stages.train import train

REGION = Region(layers=(1, 4), num_layers=6, spec="ids:1,4")


@pytest.fixture
def start(tiny_llava_dir: Path) -> Loaded:
    """A start model of six layers, the four of the tiny one and two of them again."""
    loaded = load_model(tiny_llava_dir, device="cpu")
    return deepened(loaded)


def deepened(loaded: Loaded) -> Loaded:
    text = loaded.model.model.language_model
    torch.manual_seed(0)
    for index in (4, 5):
        layer = copy.deepcopy(text.layers[index - 3])
        layer.self_attn.layer_idx = index
        text.layers.append(layer)
    for config in (loaded.model.config.text_config, text.config):
        config.num_hidden_layers = 6
    # Random layers add little; steps shall matter.
    for layer in text.layers:
        layer.mlp.down_proj.weight.data.mul_(20)
    return loaded


def tuned(loaded: Loaded, pack_dir: Path, out: Path, **changes: Any) -> Path:
    settings = {"image_tokens": "region", "method": "full", "max_steps": 2, "max_length": 96}
    config = TrainSection(lora=LoraSection(r=4, alpha=8, dropout=0.0), batch_size=4, lr=1e-2, **{**settings, **changes})
    train(
        loaded.model,
        loaded.processor,
        REGION,
        read_samples(pack_dir),
        config,
        MachineSection(micro_batch=2),
        seed=0,
        base_path="start",
        out=out / "checkpoint",
        work_dir=out / "work",
        log=out / "train_log.jsonl",
    )
    return out / "checkpoint"


def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits[batch["attention_mask"].bool()]


@pytest.fixture
def batch(start: Loaded, pack_dir: Path) -> dict[str, torch.Tensor]:
    from striate.data.collate import Collator

    whole = Collator(start.processor, 96, train=True)(read_samples(pack_dir)[:3])
    return {name: value for name, value in whole.items() if name != "labels"}


def test_steps_travel_with_the_checkpoint(
    start: Loaded, pack_dir: Path, tmp_path: Path, batch: dict[str, torch.Tensor]
) -> None:
    folder = tuned(start, pack_dir, tmp_path)
    compute = read_document(folder / VISUAL_COMPUTE_FILE, VisualCompute)
    assert (compute.layers, compute.shift) == (REGION.layers, True)
    assert read_document(folder / "region.json", Region) == REGION
    again = load_model(folder, device="cpu")
    before, after = skipping_of(start.model), skipping_of(again.model)
    assert before is not None
    assert after is not None
    # The last layer has none.
    assert sorted(after.shift) == [0, 2, 3]
    assert all(torch.equal(after.shift[layer], before.shift[layer]) for layer in (0, 2, 3))
    expected = logits(start.model, batch)
    torch.testing.assert_close(logits(again.model, batch), expected)
    after.remove()
    VisualTokenSkipping(again.model, compute)
    assert (logits(again.model, batch) - expected).abs().max() > 1e-3
    assert "take a constant step" in (folder / "README.md").read_text(encoding="utf-8")


def test_steps_of_an_adapter(start: Loaded, pack_dir: Path, tmp_path: Path) -> None:
    start.model.save_pretrained(tmp_path / "start")
    start.processor.save_pretrained(tmp_path / "start")
    folder = tuned(start, pack_dir, tmp_path, method="lora")
    file = folder / "adapter_config.json"
    file.write_text(file.read_text().replace('"start"', f'"{tmp_path / "start"}"'))
    rule = skipping_of(load_model(folder, device="cpu", merge=True).model)
    assert rule is not None
    assert sorted(rule.shift) == [0, 2, 3]


def test_a_model_keeps_its_steps_when_it_is_trained_further(start: Loaded, pack_dir: Path, tmp_path: Path) -> None:
    folder = tuned(start, pack_dir, tmp_path / "first")
    again = load_model(folder, device="cpu")
    before = skipping_of(again.model)
    assert before is not None
    second = tuned(again, pack_dir, tmp_path / "second", image_shift=False)
    after = skipping_of(load_model(second, device="cpu").model)
    assert after is not None
    assert all(torch.equal(after.shift[layer], before.shift[layer]) for layer in (0, 2, 3))


def test_only_while_training(start: Loaded, pack_dir: Path, tmp_path: Path) -> None:
    folder = tuned(start, pack_dir, tmp_path, image_tokens="region while training")
    assert not (folder / SHIFT_FILE).exists()
    assert not (folder / VISUAL_COMPUTE_FILE).exists()
    assert read_document(folder / "region.json", Region) == REGION
    assert skipping_of(start.model) is None


def test_a_lost_file_and_one_of_another_model_are_refused(start: Loaded, pack_dir: Path, tmp_path: Path) -> None:
    folder = tuned(start, pack_dir, tmp_path)
    from safetensors.torch import save_file

    save_file({"0": torch.zeros(7)}, folder / SHIFT_FILE)
    with pytest.raises(ModelError, match=rf"{SHIFT_FILE} is of another model than 6 layers of width"):
        load_model(folder, device="cpu")
    (folder / SHIFT_FILE).write_bytes(b"{}")
    with pytest.raises(ModelError, match=f"{SHIFT_FILE} can't be read"):
        load_model(folder, device="cpu")
    (folder / SHIFT_FILE).unlink()
    with pytest.raises(ModelError, match=f"{SHIFT_FILE} can't be read"):
        load_model(folder, device="cpu")


def test_pruning_hands_steps_down_in_memory_and_on_disk(
    start: Loaded, pack_dir: Path, tmp_path: Path, batch: dict[str, torch.Tensor]
) -> None:
    folder = tuned(start, pack_dir, tmp_path)
    whole = load_model(folder, device="cpu")
    rule = skipping_of(whole.model)
    assert rule is not None
    steps = dict(rule.shift)
    entry = LayerScores(scorer="x", values=(9, 9, 9, 0, 9, 9), low=(0,) * 6, high=(0,) * 6, samples=0)
    scores = Scores(num_layers=6, samples=0, scorers=(entry,))
    prune(whole.model, REGION, 1, scores, processor=whole.processor, out=tmp_path / "memory")
    prune_checkpoint(folder, [3], tmp_path / "disk")
    found = [load_model(tmp_path / name, device="cpu").model for name in ("memory", "disk")]
    for model in found:
        moved = skipping_of(model)
        assert moved is not None
        assert sorted(moved.shift) == [0, 2]
        torch.testing.assert_close(moved.shift[2], steps[2] + steps[3])
    torch.testing.assert_close(logits(found[0], batch), logits(found[1], batch))


def test_a_checkpoint_of_an_earlier_version_is_followed_and_pruned(
    start: Loaded, pack_dir: Path, tmp_path: Path, batch: dict[str, torch.Tensor]
) -> None:
    """Its region.json holds the rule, and there is no visual_compute.json."""
    folder = tuned(start, pack_dir, tmp_path)
    (folder / VISUAL_COMPUTE_FILE).unlink()
    stored = json.loads((folder / "region.json").read_text())
    rule = {"image_tokens": "region", "image_layers": [0], "image_shift": True}
    (folder / "region.json").write_text(json.dumps(stored | rule))
    old = load_model(folder, device="cpu").model
    assert (followed := skipping_of(old)) is not None
    assert (followed.compute.layers, sorted(followed.shift)) == ((0, 1, 4), [0, 2, 3])
    prune_checkpoint(folder, [3], tmp_path / "pruned")
    pruned = load_model(tmp_path / "pruned", device="cpu").model
    assert (moved := skipping_of(pruned)) is not None
    assert (moved.compute.layers, sorted(moved.shift)) == ((0, 1, 3), [0, 2])
    assert "image_tokens" not in (tmp_path / "pruned" / "region.json").read_text()
    remove_layers(old, [3])
    torch.testing.assert_close(logits(old, batch), logits(pruned, batch))


def test_on_by_default_where_image_tokens_pass_layers(start: Loaded, pack_dir: Path, tmp_path: Path) -> None:
    assert TrainSection().image_shift
    whole = tuned(copy.deepcopy(start), pack_dir, tmp_path / "all", image_tokens="all")
    off = tuned(start, pack_dir, tmp_path / "off", image_shift=False)
    assert read_visual_compute(whole) is None
    assert not read_document(off / VISUAL_COMPUTE_FILE, VisualCompute).shift
    assert not (whole / SHIFT_FILE).exists()
    assert not (off / SHIFT_FILE).exists()
    assert "keep their state" in (off / "README.md").read_text(encoding="utf-8")


def test_without_pictures_there_are_no_steps(start: Loaded, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "a box"}]
    (tmp_path / "text").mkdir()
    (tmp_path / "text/train.json").write_text(json.dumps([{"id": str(n), "conversations": turns} for n in range(4)]))
    folder = tuned(start, tmp_path / "text", tmp_path / "out", projector="frozen")
    compute = read_document(folder / VISUAL_COMPUTE_FILE, VisualCompute)
    assert (compute.layers, compute.shift) == (REGION.layers, False)
    assert "keep their state" in (folder / "README.md").read_text(encoding="utf-8")
