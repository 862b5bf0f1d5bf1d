"""Healing in memory: the loss as training computes it, what trains and what stays, and the Python call."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from training_kit import weights

import striate
from striate.artifacts import Cut, PruneRecord, Region
from striate.config import HealSection, LoraSection, MachineSection, TrainSection
from striate.data.collate import Collator
from striate.data.reading import read_samples
from striate.data.samples import Sample
from striate.errors import ConfigError, SpecError, TrainingError
from striate.healing.healed_layers import healed_layers
from striate.healing.teacher_pass import stored_rows, teacher_rows
from striate.healing.teacher_rows import IDS, LOG_PROBS, STATES, TeacherRows
from striate.models.structure.anatomy import component_of, find_anatomy, layer_of
from striate.models.visual_token_skipping.rule import VisualTokenSkipping, skipping_of
from striate.models.visual_token_skipping.visual_compute import VisualCompute
from striate.stages.heal import Healing, heal
from striate.stages.prune import prune
from striate.stages.train import train
from striate.training.caching.tensor_store import StoredTensors

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

REGION = Region(layers=(1, 3), num_layers=4, spec="ids:1,3")
TRAIN = TrainSection(
    method="full", batch_size=4, lr=1e-2, max_length=96, lora=LoraSection(r=4, alpha=8, dropout=0.0), warmup_ratio=0.0
)
HEAL = HealSection(steps=2, lr=None, hidden=0.5, top_k=50)
MACHINE = MachineSection(micro_batch=2)


@pytest.fixture(scope="module")
def samples(saved_pack: Path) -> list[Sample]:
    return read_samples(saved_pack)[-6:]


def rows_of(loaded: Loaded, samples: list[Sample], section: HealSection = HEAL, **more: Any) -> TeacherRows:
    rows = teacher_rows(loaded.model, samples, Collator(loaded.processor, 96, True), section, batch_size=4, **more)
    assert rows is not None
    return rows


def cut(loaded: Loaded, *layers: int) -> PruneRecord:
    cuts = [Cut(layer=layer, before={}, after={}, candidates={}) for layer in layers]
    return prune(loaded.model, REGION, len(layers), None, "answer-loss", cuts=cuts)[1]


@pytest.fixture
def healed(llava_builder: Callable[..., Loaded], samples: list[Sample], tmp_path: Path) -> Callable[..., Any]:
    """A function that heals a fresh model without layer 2: the model, its record and the rows of its log."""

    def run(section: HealSection = HEAL, config: TrainSection = TRAIN, machine: MachineSection = MACHINE) -> Any:
        loaded = llava_builder()
        rows = rows_of(loaded, samples, section) if section.needs_teacher else None
        pruned = cut(loaded, 2)
        return heal(loaded.model, loaded.processor, Healing(pruned, samples, rows, section, config, machine))

    return run


def test_every_way_to_batch_a_step_has_the_same_loss(healed: Callable[..., Any]) -> None:
    section = HEAL.model_copy(update={"steps": 1})
    whole = healed(section, TRAIN.model_copy(update={"batch_size": 6}), MachineSection(micro_batch=6))
    for config, machine in (
        (TRAIN, MachineSection(micro_batch=2)),
        (TRAIN.model_copy(update={"packing": True}), MACHINE),
    ):
        model, record = healed(section, config.model_copy(update={"batch_size": 6}), machine)
        assert record.first == pytest.approx(whole[1].first, rel=1e-4)
        assert set(record.first) == {"loss", "ce", "kl", "hidden"}
        for name, tensor in weights(whole[0]).items():
            torch.testing.assert_close(model.state_dict()[name], tensor, atol=2e-4, rtol=1e-3)


def test_the_loss_is_the_sum_of_its_weighed_parts(healed: Callable[..., Any]) -> None:
    first = healed(HEAL.model_copy(update={"steps": 1, "ce": 0.25, "kl": 3.0}))[1].first
    assert first["loss"] == pytest.approx(0.25 * first["ce"] + 3 * first["kl"] + 0.5 * first["hidden"], rel=1e-5)


def test_without_a_teacher_healing_is_training(
    healed: Callable[..., Any], llava_builder: Callable[..., Loaded], samples: list[Sample], tmp_path: Path
) -> None:
    model, record = healed(HealSection(steps=2, lr=None, kl=0))
    loaded = llava_builder()
    cut(loaded, 2)
    region = Region(layers=(1, 2), num_layers=3, spec="ids:1,2", selector="ids")
    same = TRAIN.model_copy(update={"max_steps": 2})
    places = {"out": tmp_path / "out", "work_dir": tmp_path / "work", "log": tmp_path / "log.jsonl"}
    train(loaded.model, loaded.processor, region, samples, same, MACHINE, seed=0, base_path="", **places)
    assert record.first.keys() == {"loss", "ce"}
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in weights(loaded.model).items())


def test_a_whole_model_is_its_own_teacher(llava_builder: Callable[..., Loaded], samples: list[Sample]) -> None:
    loaded = llava_builder()
    rows = rows_of(loaded, samples)
    untouched = prune(loaded.model, REGION, 0)[1]
    before = weights(loaded.model)
    _, record = heal(
        loaded.model,
        loaded.processor,
        Healing(untouched, samples, rows, HEAL.model_copy(update={"ce": 0.0}), TRAIN, MACHINE),
    )
    # What 16 bits round.
    assert record.first["kl"] < 1e-5
    assert record.first["hidden"] < 1e-5
    assert record.first["ce"] > 1
    anatomy = find_anatomy(loaded.model)
    still = {name for name in before if layer_of(anatomy, name) not in REGION.layers}
    still = {name for name in still if component_of(anatomy, name) != "projector"}
    assert all(torch.equal(before[name], loaded.model.state_dict()[name]) for name in still)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_heals_and_what_stays(
    healed: Callable[..., Any], llava_builder: Callable[..., Loaded], method: Any
) -> None:
    loaded = llava_builder()
    cut(loaded, 2)
    before = weights(loaded.model)
    section = HEAL.model_copy(update={"method": method, "region": "ids:0"})
    model, record = healed(section)
    after = weights(model)
    assert after.keys() == before.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    anatomy = find_anatomy(model)
    assert {layer_of(anatomy, name) for name in moved} == {0, None}
    assert {component_of(anatomy, name) for name in moved if layer_of(anatomy, name) is None} == {"projector"}
    assert record.trainable.region.layers == (0,)
    assert record.method == method


def test_rows_on_the_disk_are_those_in_memory(
    llava_builder: Callable[..., Loaded], samples: list[Sample], tmp_path: Path
) -> None:
    loaded, folder = llava_builder(), tmp_path / "teacher"
    in_memory, on_disk = rows_of(loaded, samples), rows_of(loaded, samples, folder=folder, key="one")
    again = stored_rows(folder, "one", samples)
    assert again is not None
    numbers = torch.tensor([len(in_memory) - 1, 0, 3, 4, 0])
    read_where_they_lie = TeacherRows(samples, StoredTensors(folder / "one"), most_bytes=0)
    for rows in (on_disk, again, read_where_they_lie):
        expected, found = in_memory.at(numbers), rows.at(numbers)
        assert found.keys() == {LOG_PROBS, IDS, STATES}
        assert all(torch.equal(found[part], expected[part]) for part in found)
    assert stored_rows(folder, "two", samples) is None
    data = folder / "one" / "tensors.bin"
    data.write_bytes(b"\0" * data.stat().st_size)
    assert stored_rows(folder, "one", samples) is None
    assert torch.equal(rows_of(loaded, samples, folder=folder, key="one").at(numbers)[IDS], expected[IDS])


def test_regions_are_in_the_numbers_of_the_pruned_model() -> None:
    region = Region(layers=(1, 6), num_layers=10, spec="ids:1,6")
    kept = (1, 2, 5, 6, 7, 9)
    pruned = PruneRecord(
        region=region,
        scorer="x",
        kept=kept,
        removed=(0, 3, 4, 8),
        old_to_new={old: new for new, old in enumerate(kept)},
        parameters_before=2,
        parameters_after=1,
    )
    assert healed_layers("region", pruned).layers == (0, 3)
    assert healed_layers("beside", pruned).layers == (0, 1, 2, 4, 5)
    assert healed_layers("all", pruned).layers == tuple(range(6))
    assert healed_layers("top:2", pruned).layers == (4, 5)
    with pytest.raises(SpecError, match=r"heal.region 'scores:block-influence:2' needs scores"):
        healed_layers("scores:block-influence:2", pruned)


@pytest.mark.parametrize("computing", [(1, 3), (0, 1, 3)])
def test_image_tokens_skip_layers_while_healing_as_before(
    llava_builder: Callable[..., Loaded], samples: list[Sample], computing: tuple[int, ...]
) -> None:
    loaded = llava_builder()
    VisualTokenSkipping(loaded.model, VisualCompute(layers=computing, num_layers=4), {})
    rows = rows_of(loaded, samples)
    pruned = cut(loaded, 2)
    everywhere = Healing(pruned, samples, rows, HEAL.model_copy(update={"region": "all"}), TRAIN, MACHINE)
    if len(computing) == 2:
        with pytest.raises(TrainingError, match=r"heal.region 'all' has layers that compute no image tokens"):
            heal(loaded.model, loaded.processor, everywhere)
    model, record = heal(loaded.model, loaded.processor, Healing(pruned, samples, rows, HEAL, TRAIN, MACHINE))
    rule = skipping_of(model)
    if len(computing) == 2:
        assert rule is not None
        assert rule.compute.layers == (1, 2)
    else:
        # All layers that are left compute them: that is no rule.
        assert rule is None
    assert record.last["loss"] < record.first["loss"]


def test_the_losses_told_are_means_of_the_first_and_last_third(
    llava_builder: Callable[..., Loaded], samples: list[Sample], tmp_path: Path
) -> None:
    loaded, log = llava_builder(), tmp_path / "heal_log.jsonl"
    rows = rows_of(loaded, samples)
    section = HEAL.model_copy(update={"steps": 7})
    _, record = heal(
        loaded.model, loaded.processor, Healing(cut(loaded, 2), samples, rows, section, TRAIN, MACHINE), log=log
    )
    losses = [json.loads(line)["loss"] for line in log.read_text(encoding="utf-8").splitlines()]
    assert len(losses) == 7
    assert record.first["loss"] == pytest.approx(sum(losses[:2]) / 2)
    assert record.last["loss"] == pytest.approx(sum(losses[5:]) / 2)


def test_broken_samples_are_left_out_by_teacher_and_student(
    llava_builder: Callable[..., Loaded], samples: list[Sample], tmp_path: Path
) -> None:
    loaded = llava_builder()
    broken = Sample("broken", samples[0].messages, (tmp_path / "missing.png",))
    both = [broken, *samples]
    skipping = Collator(loaded.processor, 96, True, skips_broken=True)
    rows = teacher_rows(loaded.model, both, skipping, HEAL, batch_size=4)
    whole = rows_of(loaded, samples)
    assert rows is not None
    assert rows.span(broken) == (0, 0)
    assert torch.equal(rows.at(torch.arange(len(rows)))[IDS], whole.at(torch.arange(len(whole)))[IDS])
    healing = Healing(cut(loaded, 2), both, rows, HEAL, TRAIN, MACHINE)
    _, record = heal(loaded.model, loaded.processor, healing, broken="skip")
    assert list(record.skipped) == ["broken"]


def test_what_can_not_heal_is_told(llava_builder: Callable[..., Loaded], samples: list[Sample]) -> None:
    loaded = llava_builder()
    pruned = cut(loaded, 2)
    for section, text in (
        (HealSection(), "neither heal.steps nor heal.share is set"),
        (HealSection(steps=1), "there is nothing of the whole model to learn from"),
    ):
        with pytest.raises(TrainingError, match=text):
            heal(loaded.model, loaded.processor, Healing(pruned, samples, None, section, TRAIN, MACHINE))


def test_the_python_call_heals(llava_builder: Callable[..., Loaded], samples: list[Sample]) -> None:
    loaded = llava_builder()
    given = {"remove": 1, "samples": samples, "processor": loaded.processor}
    model = striate.prune(loaded.model, REGION, heal={"steps": 2, "lr": 1e-2}, train=TRAIN, **given)
    assert model is loaded.model
    twin = llava_builder()
    alone = striate.prune(twin.model, REGION, **given)
    assert find_anatomy(model).num_layers == find_anatomy(alone).num_layers == 3
    assert any(not torch.equal(tensor, model.state_dict()[name]) for name, tensor in weights(alone).items())
    with pytest.raises(ConfigError, match="heal stps: Extra inputs are not permitted"):
        striate.prune(twin.model, REGION, heal={"stps": 2}, **given)
    with pytest.raises(ConfigError, match="heal without samples to train on"):
        striate.prune(twin.model, REGION, remove=1, heal={"steps": 2})
