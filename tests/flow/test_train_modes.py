"""Training with image tokens computed in the region alone, and with frozen layers in 8-bit floats."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from pydantic import ValidationError
from training_kit import Said

from striate.artifacts import LayerScores, Region, Scores, TrainRecord, read_document
from striate.config import LoraSection, MachineSection, TrainSection
from striate.data.collate import Collator
from striate.data.reading import read_samples
from striate.data.samples import Sample
from striate.errors import SpecError, TrainingError
from striate.models.io.load import Loaded, load_model
from striate.models.structure.anatomy import decoder_layers, find_anatomy
from striate.models.visual_token_skipping import skipped_layer
from striate.models.visual_token_skipping.rule import VisualTokenSkipping, skipping_of
from striate.models.visual_token_skipping.rule_check import put_back
from striate.models.visual_token_skipping.visual_compute import VISUAL_COMPUTE_FILE, VisualCompute, read_visual_compute
from striate.stages.prune import prune
from striate.stages.train import train
from striate.training import session
from striate.training.packing.packing_check import check_packing
from striate.training.trainer import RegionTrainer

REGION = Region(layers=(1, 3), num_layers=4, spec="ids:1,3")
LORA = TrainSection(
    lora=LoraSection(r=4, alpha=8, dropout=0.0),
    batch_size=4,
    lr=1e-2,
    projector_lr=1e-3,
    warmup_ratio=0,
    max_length=96,
    max_steps=2,
)
Run = Callable[..., TrainRecord]


@pytest.fixture
def samples(pack_dir: Path) -> list[Sample]:
    return read_samples(pack_dir)


@pytest.fixture
def run(tmp_path: Path, samples: list[Sample], tiny_llava_dir: Path) -> Run:
    def start(loaded: Loaded, config: TrainSection, name: str = "run", **more: Any) -> TrainRecord:
        folder, machine = tmp_path / name, more.pop("machine", MachineSection(micro_batch=2))
        return train(
            loaded.model,
            loaded.processor,
            REGION,
            samples,
            config,
            machine,
            seed=0,
            base_path=str(tiny_llava_dir),
            out=folder / "checkpoint",
            work_dir=folder / "work",
            log=folder / "train_log.jsonl",
            **more,
        )

    return start


def with_mode(**changes: Any) -> TrainSection:
    return TrainSection.model_validate({**LORA.model_dump(), **changes})


def batch_of(loaded: Loaded, samples: list[Sample]) -> dict[str, torch.Tensor]:
    return {
        name: value
        for name, value in Collator(loaded.processor, 96, train=True)(samples[:3]).items()
        if name != "labels"
    }


def test_the_rule_travels_with_the_checkpoint(
    tiny_llava: Loaded, samples: list[Sample], run: Run, tmp_path: Path
) -> None:
    batch = batch_of(tiny_llava, samples)
    run(tiny_llava, with_mode(image_tokens="region", image_shift=False))
    folder = tmp_path / "run" / "checkpoint"
    compute = read_document(folder / VISUAL_COMPUTE_FILE, VisualCompute)
    assert compute == VisualCompute(layers=REGION.layers, num_layers=4)
    assert read_document(folder / "region.json", Region) == REGION
    again = load_model(folder, device="cpu", merge=True)
    rule = skipping_of(again.model)
    assert rule is not None
    ids = torch.tensor(find_anatomy(again.model).image_token_ids)
    with torch.no_grad():
        found = again.model(**batch).logits
        rule.remove()
        with put_back(decoder_layers(again.model), compute.skipped, torch.isin(batch["input_ids"], ids)):
            expected = again.model(**batch).logits
        plain = again.model(**batch).logits
    attended = batch["attention_mask"].bool()
    torch.testing.assert_close(found[attended], expected[attended], atol=1e-5, rtol=1e-4)
    assert (plain - expected)[attended].abs().max() > 1e-3
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "Image tokens are computed only in layers 1, 3**" in card
    assert "striate.load_model('checkpoint')" in card


def test_while_training_only(tiny_llava: Loaded, run: Run, tmp_path: Path) -> None:
    run(tiny_llava, with_mode(image_tokens="region while training"))
    assert read_document(tmp_path / "run" / "checkpoint" / "region.json", Region) == REGION
    assert skipping_of(tiny_llava.model) is None
    assert "Image tokens" not in (tmp_path / "run" / "checkpoint" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("mode", "method"),
    [
        ({"image_also": "bottom:1"}, "full"),
        ({"image_also": "bottom:1"}, "lora"),
        ({"packing": True}, "full"),
        ({"image_tokens": "region while training"}, "lora"),
    ],
    ids=str,
)
def test_half_precision_follows_the_rule(tiny_llava: Loaded, run: Run, mode: dict[str, Any], method: str) -> None:
    tiny_llava.model.to(torch.bfloat16)
    machine = MachineSection(micro_batch=2, cache_vision="memory")
    config = with_mode(**{"method": method, "image_tokens": "region", **mode})
    record = run(tiny_llava, config.model_copy(update={"max_steps": 12}), machine=machine)
    assert record.last_loss < 0.9 * record.first_loss


def test_the_mode_changes_what_is_learned(tiny_llava: Loaded, run: Run) -> None:
    plain = run(copy.deepcopy(tiny_llava), LORA, "plain")
    ruled = run(tiny_llava, with_mode(image_tokens="region"), "ruled")
    assert plain.first_loss != ruled.first_loss


@pytest.mark.parametrize("mode", ["all", "region while training"])
def test_a_model_with_a_rule_keeps_to_it(tiny_llava: Loaded, run: Run, mode: str) -> None:
    VisualTokenSkipping(tiny_llava.model, VisualCompute(layers=(0, 3), num_layers=4))
    with pytest.raises(TrainingError) as caught:
        run(tiny_llava, with_mode(image_tokens=mode))
    assert "the model computes image tokens in layers 0, 3 alone, training in" in str(caught.value)
    assert "--set train.image_tokens=region --set select.region=ids:0,3" in str(caught.value)


def test_pruning_keeps_the_rule(tiny_llava: Loaded, run: Run, tmp_path: Path) -> None:
    run(tiny_llava, with_mode(image_tokens="region"))
    tuned = load_model(tmp_path / "run" / "checkpoint", device="cpu", merge=True)
    entry = LayerScores(scorer="x", values=(0, 1, 2, 3), low=(0,) * 4, high=(0,) * 4, samples=0)
    scores = Scores(num_layers=4, samples=0, scorers=(entry,))
    _, record = prune(tuned.model, REGION, 1, scores, processor=tuned.processor, out=tmp_path / "pruned")
    assert record.removed == (0,)
    kept = read_document(tmp_path / "pruned" / "region.json", Region)
    assert kept.layers == (0, 2)
    compute = read_document(tmp_path / "pruned" / VISUAL_COMPUTE_FILE, VisualCompute)
    assert compute == VisualCompute(layers=(0, 2), num_layers=3, shift=True)
    assert skipping_of(load_model(tmp_path / "pruned", device="cpu").model) is not None


def test_first_layers_that_compute_image_tokens_too(tiny_llava: Loaded, run: Run, tmp_path: Path) -> None:
    fresh = copy.deepcopy(tiny_llava)
    run(tiny_llava, with_mode(image_tokens="region", image_also="bottom:2"))
    folder = tmp_path / "run" / "checkpoint"
    compute = read_document(folder / VISUAL_COMPUTE_FILE, VisualCompute)
    assert compute == VisualCompute(layers=(0, 1, 3), num_layers=4, shift=True)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "Image tokens are computed only in layers 0, 1, 3**" in card
    tuned = load_model(folder, device="cpu", merge=True)
    rule = skipping_of(tuned.model)
    assert rule is not None
    assert rule.compute.skipped == (2,)
    with pytest.raises(TrainingError) as caught:
        run(copy.deepcopy(tuned), with_mode(image_tokens="region"), "again")
    assert "in layers 0, 1, 3 alone, training in layers 1, 3" in str(caught.value)
    assert "--set train.image_tokens=region --set train.image_also=ids:0" in str(caught.value)
    entry = LayerScores(scorer="x", values=(0, 1, 2, 3), low=(0,) * 4, high=(0,) * 4, samples=0)
    scores = Scores(num_layers=4, samples=0, scorers=(entry,))
    prune(tuned.model, REGION, 1, scores, processor=tuned.processor, out=tmp_path / "pruned")
    pruned = read_visual_compute(tmp_path / "pruned")
    assert pruned is not None
    assert (pruned.layers, pruned.skipped) == ((0, 2), (1,))
    with pytest.raises(SpecError, match=r"train\.image_also 'all' and the region are all 4 layers together"):
        run(fresh, with_mode(image_tokens="region", image_also="all"), "all")


def test_frozen_layers_in_eight_bits(tiny_llava_dir: Path, run: Run, tmp_path: Path) -> None:
    loaded = load_model(tiny_llava_dir, device="cpu", dtype="bfloat16")
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    said = Said()
    record = run(loaded, with_mode(frozen="fp8"), progress=said)
    assert "14 frozen linear layers are held in 8-bit floats while training" in said.said
    assert "28 tensors in 2 of 4 decoder layers" in record.proof
    again = load_model(tmp_path / "run" / "checkpoint", device="cpu", dtype="bfloat16", merge=True).model.state_dict()
    for name, value in before.items():
        moved = not torch.equal(again[name], value)
        trained = any(f"layers.{layer}." in name for layer in REGION.layers) and name.endswith("proj.weight")
        if "language_model.layers" in name:
            assert moved == trained, name


@pytest.mark.parametrize("method", ["lora", "full"])
def test_packed_rows_are_compared_before_frozen_layers_are_rounded(
    tiny_llava_dir: Path, run: Run, monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    kinds: list[set[str]] = []

    def spied(model: Any, *args: Any) -> str:
        kinds.append({type(module).__name__ for module in model.modules()})
        return check_packing(model, *args)

    monkeypatch.setattr(session, "check_packing", spied)
    loaded, said = load_model(tiny_llava_dir, device="cpu", dtype="bfloat16"), Said()
    record = run(loaded, with_mode(frozen="fp8", packing=True, method=method), progress=said)
    assert "14 frozen linear layers are held in 8-bit floats while training" in said.said
    assert record.proof.count("samples in one row get the hidden states they get alone") == 1
    assert len(kinds) == 1
    assert "Fp8Linear" not in kinds[0]


STILL = {"method": "full", "lr": 1e-12, "projector_lr": 1e-12, "batch_size": 2, "max_steps": 4}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, (folder / "train_log.jsonl").read_text().splitlines()))


@pytest.mark.parametrize(
    ("packing", "compile", "tokens"),
    [(False, "off", "region"), (True, "off", "region while training"), (False, "on", "region"), (True, "on", "region")],
)
def test_one_step_in_some_computes_image_tokens_in_all_layers(
    tiny_llava: Loaded,
    run: Run,
    samples: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    packing: bool,
    compile: Any,
    tokens: str,
) -> None:
    """Weights that stand still have the losses of exact training in whole steps, else those of the rule."""
    monkeypatch.setattr("striate.training.compile.regional.frozen_encoders", lambda _: [])
    monkeypatch.setattr(session, "compiled_layers", partial(session.compiled_layers, backend="eager"))
    packs = mock.Mock(wraps=session.check_packing)
    monkeypatch.setattr(session, "check_packing", packs)
    held_out = samples[:3]
    config = with_mode(**STILL, image_tokens=tokens, image_also="bottom:1", validate_every=1)
    run(copy.deepcopy(tiny_llava), config, "ruled", held_out=held_out)
    run(copy.deepcopy(tiny_llava), with_mode(**STILL), "exact")
    settings = {"image_whole_every": 2, "packing": packing}
    machine = MachineSection(micro_batch=2, pack_tokens=400, compile=compile)
    mixed = config.model_copy(update=settings)
    record = run(copy.deepcopy(tiny_llava), mixed, "mixed", held_out=held_out, machine=machine)
    ruled, exact, found = (rows_of(tmp_path / name) for name in ("ruled", "exact", "mixed"))
    assert [row["image_tokens"] for row in found] == ["region", "all", "region", "all"]
    assert all("image_tokens" not in row for row in (*ruled, *exact))
    assert record.whole_steps == 2
    losses = [row["loss"] for row in found]
    wanted = [ruled[0]["loss"], exact[1]["loss"], ruled[2]["loss"], exact[3]["loss"]]
    assert losses == pytest.approx(wanted, rel=1e-5)
    assert all(abs(one["loss"] - other["loss"]) > 1e-3 for one, other in zip(ruled, exact, strict=True))
    # What is measured between steps is the model as it will be used.
    measured = [[row["validation"]["loss"] for row in rows] for rows in (ruled, found)]
    assert measured[1] == pytest.approx(measured[0], rel=1e-5)
    # Rows are compared with single samples in both kinds of steps.
    assert packs.call_count == (2 if packing else 0)
    kept = read_visual_compute(tmp_path / "mixed" / "checkpoint")
    assert (kept and kept.layers) == ((0, 1, 3) if tokens == "region" else None)


def test_whole_steps_that_never_come_are_told(tiny_llava: Loaded, run: Run) -> None:
    said = Said()
    record = run(tiny_llava, with_mode(image_tokens="region", image_whole_every=3), progress=said)
    assert record.whole_steps == 0
    assert any(
        "train.image_whole_every has no effect: the training has 2 steps, fewer than 3" in one for one in said.said
    )


def test_a_training_that_fails_in_a_whole_step_leaves_the_rule_as_it_was(
    tiny_llava: Loaded, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = RegionTrainer.training_step

    def fail(self: RegionTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == 1:
            now = skipping_of(self.model)
            assert now is not None
            assert now.whole
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(RegionTrainer, "training_step", fail)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_llava, with_mode(image_tokens="region", image_whole_every=2))
    rule = skipping_of(tiny_llava.model)
    assert rule is not None
    assert not rule.whole


def test_modes_that_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="image_whole_every has no effect with image_tokens 'all'"):
        with_mode(image_whole_every=10)
    with pytest.raises(ValidationError, match="image_whole_every 1 lets all layers compute image tokens in every step"):
        with_mode(image_tokens="region", image_whole_every=1)
    with pytest.raises(ValidationError, match="image_also has no effect with image_tokens 'all'"):
        with_mode(image_also="bottom:2")
    with pytest.raises(ValidationError, match="frozen has no effect on method qlora"):
        with_mode(method="qlora", frozen="fp8")


@pytest.mark.parametrize(
    ("packing", "compile", "shift"),
    [(False, "on", True), (True, "off", False), (True, "on", False), (True, "on", True)],
)
def test_compiled_and_packed_follow_the_rule(
    tiny_llava: Loaded,
    run: Run,
    samples: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
    packing: bool,
    compile: Any,
    shift: bool,
) -> None:
    """The losses of padded batches uncompiled; packed ones by runs of text, as where there is a kernel for them."""
    monkeypatch.setattr("striate.training.compile.regional.frozen_encoders", lambda _: [])
    monkeypatch.setattr(session, "compiled_layers", partial(session.compiled_layers, backend="eager"))
    del samples[2:]
    config = with_mode(image_tokens="region", image_also="bottom:1", image_shift=shift, lr=1e-3, batch_size=2)
    plain = run(copy.deepcopy(tiny_llava), config, "plain")
    monkeypatch.setattr(skipped_layer, "kernel_runs", lambda *_: True)
    said = Said()
    config = config.model_copy(update={"packing": packing})
    machine = MachineSection(micro_batch=2, pack_tokens=400, compile=compile)
    found = run(tiny_llava, config, "found", machine=machine, progress=said)
    assert (found.first_loss, found.last_loss) == pytest.approx((plain.first_loss, plain.last_loss), rel=1e-4)
    assert compile == "off" or "layers run compiled, as" in " ".join(said.said)
