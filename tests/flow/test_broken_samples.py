"""A sample that turns out to be broken in training: the steps are kept, and mended or left out it goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from striate.artifacts import TrainRecord, read_document
from striate.config import RunConfig
from striate.data.reading import read_samples
from striate.errors import DataError, TrainingError
from striate.pipeline import Flow
from striate.training.batching.order import SeededOrder

ADAPTER = "checkpoint/adapter_model.safetensors"


class Case:
    """A pack whose sample of the last of four steps is broken, and its run."""

    def __init__(self, run_config: Callable[..., RunConfig], listener: Any, pack: Path, folder: Path) -> None:
        self._run_config, self._listener, self.folder = run_config, listener, folder
        self.pack = Path(shutil.copytree(pack, folder / "pack"))
        self.rows = json.loads((self.pack / "train.json").read_text())
        order = list(SeededOrder(read_samples(self.pack), 0, 4))
        # The last step's samples go from texts to pictures.
        self.index = order[-1]
        self.sample = self.rows[self.index]
        self.picture = self.pack / self.sample["image"]
        self.whole = self.picture.read_bytes()

    def cut(self) -> None:
        self.picture.write_bytes(self.whole[: len(self.whole) // 2])

    def lengthen(self) -> None:
        turns = self.sample["conversations"]
        turns[0]["value"] = "<image>\n" + "Look closely. " * 80
        (self.pack / "train.json").write_text(json.dumps(self.rows))

    def train(self, *settings: str, name: str = "run", overwrite: bool = False) -> list[str]:
        heard = self._listener()
        config = self._run_config(
            f'data.train=["{self.pack}"]', "train.save_steps=100", "train.epochs=1", "prune.remove=0", *settings
        )
        flow = Flow(config, self.folder / name, progress=heard, overwrite=overwrite)
        flow.select()
        flow.train()
        said: list[str] = heard.said
        return said

    def record(self, name: str = "run") -> TrainRecord:
        return read_document(self.folder / name / "train.json", TrainRecord)

    def same(self, one: str, other: str) -> bool:
        expected, found = (load_file(self.folder / name / ADAPTER) for name in (one, other))
        return all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.fixture
def case(run_config: Callable[..., RunConfig], listener: Any, saved_pack: Path, tmp_path: Path) -> Case:
    return Case(run_config, listener, saved_pack, tmp_path)


def test_a_mended_picture_goes_on_from_the_step_before_to_the_same_bits(case: Case) -> None:
    case.train(name="whole")
    steps = case.record("whole").steps
    case.cut()
    with pytest.raises(DataError, match=f"training stopped at step {steps}: sample .*can't read picture") as error:
        case.train("machine.workers=1")
    assert f"the same command then goes on from step {steps - 1}" in error.value.next_step
    assert "Traceback" not in str(error.value)
    case.picture.write_bytes(case.whole)
    assert f"going on from step {steps - 1} of {steps}" in case.train()
    assert case.same("whole", "run")


def test_a_broken_sample_is_left_out_and_recorded(case: Case) -> None:
    case.cut()
    with pytest.raises(DataError):
        case.train()
    said = case.train("data.broken=skip")
    assert "1 broken samples were left out, which train.json names" in said
    record = case.record()
    assert list(record.skipped) == [case.sample["id"]]
    assert "can't read picture" in record.skipped[case.sample["id"]]
    assert f"going on from step {record.steps - 1} of {record.steps}" in said
    rows = [json.loads(line) for line in (case.folder / "run/train_log.jsonl").read_text().splitlines()]
    assert [list(row.get("skipped", {})) for row in rows] == [[]] * (record.steps - 1) + [[case.sample["id"]]]
    assert not (case.folder / "run/.training").exists()
    assert case.train() == ["select: up to date", "train: up to date"]


def test_of_two_sources_that_share_ids_only_the_broken_sample_is_left_out(case: Case) -> None:
    other = Path(shutil.copytree(case.pack, case.folder / "other"))
    case.cut()
    case.train("data.broken=skip", f'data.train=["{case.pack}", "{other}"]')
    record, size = case.record(), len(case.rows)
    assert list(record.skipped) == [f"{case.pack}: {case.sample['id']}"]
    assert [(one.name, one.samples, one.seen) for one in record.sources] == [
        (str(case.pack), size, size - 1),
        (str(other), size, size),
    ]


@pytest.mark.attack
@pytest.mark.parametrize("setting", ["train.packing=true", "machine.cache_vision=memory", "train.image_tokens=region"])
def test_everything_that_looks_at_samples_beforehand_skips_too(case: Case, setting: str) -> None:
    for row in case.rows[:2]:
        (case.pack / row["image"]).write_bytes(b"no picture")
    case.train("data.broken=skip", "train.epochs=2", setting)
    assert sorted(case.record().skipped) == sorted(row["id"] for row in case.rows[:2])


@pytest.mark.attack
def test_a_step_of_broken_samples_alone_teaches_nothing(case: Case) -> None:
    chosen = list(SeededOrder(read_samples(case.pack), 0, 4))[4:8]
    for row in (case.rows[index] for index in chosen):
        row["conversations"][0]["value"] = row["conversations"][0]["value"] + "Look closely. " * 80
    (case.pack / "train.json").write_text(json.dumps(case.rows))
    case.train("data.broken=skip")
    rows = [json.loads(line) for line in (case.folder / "run/train_log.jsonl").read_text().splitlines()]
    assert (rows[1]["loss"], len(rows[1]["skipped"])) == (0, 4)
    assert all(row["loss"] > 0 for row in (rows[0], *rows[2:]))


def test_a_sample_too_long_goes_on_with_a_larger_max_length_where_no_step_saw_the_limit(case: Case) -> None:
    case.lengthen()
    case.train("train.max_length=1024", name="whole")
    steps = case.record("whole").steps
    with pytest.raises(DataError, match=f"training stopped at step {steps}: sample .* does not fit: "):
        case.train("train.max_length=128")
    said = case.train("train.max_length=1024", overwrite=True)
    assert f"going on from step {steps - 1} of {steps}" in said
    assert case.same("whole", "run")


@pytest.mark.attack
def test_where_a_sample_was_cut_another_max_length_begins_anew(case: Case) -> None:
    first = next(iter(SeededOrder(read_samples(case.pack), 0, 4)))
    case.rows[first]["conversations"][-1]["value"] = "a very long answer " * 40
    case.lengthen()
    with pytest.raises(DataError):
        case.train("train.max_length=128")
    said = case.train("train.max_length=1024", overwrite=True)
    assert any("is of another training run: train.max_length changed" in line for line in said)
    assert not any(line.startswith("going on") for line in said)


@pytest.mark.attack
def test_a_sample_that_was_learned_from_may_not_change(case: Case) -> None:
    case.cut()
    with pytest.raises(DataError):
        case.train()
    first = next(iter(SeededOrder(read_samples(case.pack), 0, 4)))
    case.rows[first]["conversations"][-1]["value"] = "violet"
    (case.pack / "train.json").write_text(json.dumps(case.rows))
    case.picture.write_bytes(case.whole)
    with pytest.raises(TrainingError, match=r"data \(sample '.*', which a step has learned from\) changed"):
        case.train()


@pytest.mark.attack
def test_a_removed_sample_is_another_order(case: Case) -> None:
    case.cut()
    with pytest.raises(DataError):
        case.train()
    (case.pack / "train.json").write_text(json.dumps(case.rows[: case.index] + case.rows[case.index + 1 :]))
    with pytest.raises(TrainingError, match=r"data \(of \d+ samples, now \d+\) changed"):
        case.train()


def test_none_that_can_be_used(case: Case) -> None:
    for row in case.rows:
        if "image" in row:
            (case.pack / row["image"]).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"none of \d+ samples can be used, such as: sample "):
        case.train("data.broken=skip")


def test_several_processes_must_all_learn_from_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    from striate.training.preflight_checks import check_broken

    check_broken("refuse", 2)
    check_broken("skip", 1)
    with pytest.raises(TrainingError, match=r"data\.broken is skip, and 2 processes train together"):
        check_broken("skip", 2)


def test_a_broken_sample_does_not_stop_analysis_ranking_and_refitting_either(case: Case) -> None:
    case.lengthen()
    heard = case._listener()
    config = case._run_config(
        f'data.train=["{case.pack}"]',
        "data.broken=skip",
        "train.epochs=1",
        "prune.scorer=answer-loss",
        "prune.compensate=refit",
        "heal.share=100%",
        "select.region=ids:1",
    )
    analyzed = config.analyze.model_copy(update={"samples": 99})
    flow = Flow(config.model_copy(update={"analyze": analyzed}), case.folder / "pruned", progress=heard)
    assert flow.analyze().samples == len(case.rows) - 1
    assert f"analyze: 1 of {len(case.rows)} calibration samples can't be used" in heard.said
    flow.select()
    flow.train()
    record = flow.prune()
    assert record.compensation is not None
    assert record.compensation.samples == len(case.rows) - 1
    assert f"prune: 1 of {len(case.rows)} calibration samples can't be used" in heard.said
    assert flow.heal().samples == len(case.rows)


def test_prompts_that_compare_a_saved_model_are_of_samples_that_can_be_read(case: Case, tiny_llava: Any) -> None:
    from striate.pipeline.pruning import self_test_prompts as prompts

    pictures = {case.pack / row["image"] for row in case.rows if "image" in row}
    for picture in sorted(pictures)[1:]:
        picture.write_bytes(case.whole[: len(case.whole) // 2])
    config = case._run_config(f'data.train=["{case.pack}"]', "data.broken=skip")
    found = prompts.self_test_prompts(tiny_llava.processor, config, [case.pack])
    assert len(found["input_ids"]) == prompts.SAMPLES
    refusing = case._run_config(f'data.train=["{case.pack}"]')
    with pytest.raises(DataError, match="can't read picture"):
        prompts.self_test_prompts(tiny_llava.processor, refusing, [case.pack])
