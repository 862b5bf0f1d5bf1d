"""Validation while training: what is measured, that it changes nothing, the best weights, stopping, and going on."""

from __future__ import annotations

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from training_kit import Run, Said, runner, weights

from striate.artifacts import Region
from striate.config import LoraSection, MachineSection, TrainSection
from striate.data.collate import Collator
from striate.data.reading import read_samples
from striate.data.samples import Message, Sample
from striate.errors import TrainingError
from striate.models.io.load import Loaded
from striate.training import session
from striate.training.compile.regional import compiled_layers
from striate.training.validation import held_out_loss
from striate.training.validation.watch import VALIDATION, Watch

REGION = Region(layers=(1, 3), num_layers=4, spec="ids:1,3")
LORA = TrainSection(
    batch_size=4,
    max_steps=6,
    lr=2e-2,
    scheduler="constant",
    max_length=96,
    save_steps=2,
    validate_every=2,
    lora=LoraSection(r=4, alpha=8, dropout=0.3),
)
# With rates so high, and answers that no training sample has, the loss of these texts goes up and down.
WILD = LORA.model_copy(update={"lr": 0.4, "warmup_ratio": 0.0, "validate_every": 1, "max_steps": 7, "keep": "best"})
WILD = WILD.model_copy(update={"metric_for_best_model": "text_loss"})
TEXTS = [Sample(f"t{n}", (Message("user", f"Is {n} a number?"), Message("assistant", "STRIPE 9,7"))) for n in range(3)]


class Killed(Said):
    """A progress that interrupts after some steps."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def track(self, label: str, total: int) -> Any:
        return nullcontext(self._advance)

    def _advance(self, count: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.fixture
def data(pack_dir: Path) -> tuple[list[Sample], list[Sample]]:
    samples = read_samples(pack_dir)
    return [*samples[:7], *samples[12:]], [*samples[7:12], *TEXTS]


@pytest.fixture
def start(tmp_path: Path, data: tuple[list[Sample], list[Sample]]) -> Run:
    return runner(tmp_path, data[0], REGION, MachineSection(micro_batch=2))


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def measured(folder: Path) -> dict[int, dict[str, float]]:
    """Return what was measured after each step, without its seconds."""
    found = {row["step"]: row[VALIDATION] for row in rows(folder) if VALIDATION in row}
    return {step: {name: value for name, value in one.items() if name != "seconds"} for step, one in found.items()}


def matched(loaded: Loaded, samples: list[Sample]) -> list[bool]:
    """Whether greedy decoding from each sample's prompt writes the answer and the end of the turn, token by token."""
    collator, found = Collator(loaded.processor, 96, train=True), []
    for sample in samples:
        batch = collator([sample])
        answer = batch["labels"][0][batch["labels"][0] != -100]
        first = int((batch["labels"][0] != -100).nonzero()[0])
        prompt = {name: value if name == "pixel_values" else value[:, :first] for name, value in batch.items()}
        prompt.pop("labels")
        written = loaded.model.generate(
            **prompt, max_new_tokens=len(answer), min_new_tokens=len(answer), do_sample=False
        )
        found.append(torch.equal(written[0, first:], answer))
    return found


def loss_of(loaded: Loaded, samples: list[Sample]) -> float:
    """The mean over answer tokens of Hugging Face's own loss, sample by sample."""
    collator = Collator(loaded.processor, 96, train=True)
    total = count = 0.0
    with torch.no_grad():
        for sample in samples:
            batch = collator([sample])
            tokens = int((batch["labels"][:, 1:] != -100).sum())
            total += float(loaded.model(**batch).loss) * tokens
            count += tokens
    return total / count


def test_what_is_measured(start: Run, llava_builder: Any, data: Any, tmp_path: Path, monkeypatch: Any) -> None:
    loaded, said, held_out = llava_builder(), Said(), data[1]
    # Of the batches some are encoded again each time.
    monkeypatch.setattr(held_out_loss, "KEPT_BYTES", 60_000)
    record = start(loaded, "run", LORA, held_out=held_out, progress=said).validation
    found = measured(tmp_path / "run")
    assert list(found) == [2, 4, 6]
    right = {name: matched(loaded, some) for name, some in (("visual", held_out[:5]), ("text", TEXTS))}
    expected = {
        "exact_match": sum(map(sum, right.values())) / 8,
        "visual_exact_match": sum(right["visual"]) / 5,
        "text_exact_match": sum(right["text"]) / 3,
        "loss": loss_of(loaded, held_out),
        "visual_loss": loss_of(loaded, held_out[:5]),
        "text_loss": loss_of(loaded, TEXTS),
    }
    assert found[6] == pytest.approx(expected, rel=1e-5)
    assert record
    assert (record.visual_samples, record.text_samples) == (5, 3)
    assert (record.first, record.last, record.kept_step) == (found[2], found[6], 6)
    assert (record.best_step, record.stopped_early) == (min(found, key=lambda step: found[step]["loss"]), False)
    kinds = f"visual {found[4]['visual_loss']:.4f}, text {found[4]['text_loss']:.4f}"
    match = f"exact match {100 * found[4]['exact_match']:.1f}%"
    assert any(
        line.startswith(f"validation at step 4: loss {found[4]['loss']:.4f} ({kinds}), {match}") for line in said.said
    )


@pytest.mark.parametrize("kind", ["padded", "packed", "compiled", "cached", "full"])
def test_training_is_the_same_with_it(
    start: Run, llava_builder: Any, data: Any, tmp_path: Path, monkeypatch: Any, kind: str
) -> None:
    config = LORA.model_copy(update={"packing": kind == "packed", "method": "full" if kind == "full" else "lora"})
    config = config.model_copy(update={"max_steps": 2 if kind == "compiled" else 4, "validate_every": 1})
    # Few lengths: each compiles every kind of layer again, up to the second.
    samples = data[0][:4] if kind == "compiled" else data[0]
    more = {"compiled": {"compile": "on"}, "cached": {"cache_vision": "memory"}}.get(kind, {})
    monkeypatch.setattr(session, "compiled_layers", partial(compiled_layers, backend="eager"))
    plain, watched = llava_builder(), llava_builder()
    start(plain, "plain", config, machine=more, samples=samples)
    start(watched, "watched", config, machine=more, samples=samples, held_out=data[1])
    assert len(measured(tmp_path / "watched")) == config.max_steps
    expected = weights(plain.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(watched.model).items())
    shown = [
        [(row["loss"], row["grad_norm"], row["tokens"]) for row in rows(tmp_path / name)]
        for name in ("plain", "watched")
    ]
    assert shown[0] == shown[1]


@pytest.mark.parametrize(("kind", "killed"), [("lora", 4), ("lora", 7), ("full", 6)])
def test_resumed_is_uninterrupted(
    start: Run, llava_builder: Any, data: Any, tmp_path: Path, kind: str, killed: int
) -> None:
    config = WILD.model_copy(update={"method": kind, "lr": 0.4 if kind == "lora" else 0.02})
    whole, again = llava_builder(), llava_builder()
    record = start(whole, "whole", config, held_out=data[1])
    assert record.validation
    losses = {step: one["text_loss"] for step, one in measured(tmp_path / "whole").items()}
    assert record.validation.best_step == record.validation.kept_step == min(losses, key=lambda step: losses[step])
    # Else the best weights would be those of the last step.
    assert record.validation.best_step < 7
    assert loss_of(whole, TEXTS) == pytest.approx(min(losses.values()), rel=1e-5)
    with pytest.raises(KeyboardInterrupt):
        start(llava_builder(), "cut", config, held_out=data[1], progress=Killed(killed))
    said = Said()
    resumed = start(again, "cut", config, held_out=data[1], progress=said)
    assert said.said[0] == f"going on from step {(killed - 1) // 2 * 2} of 7"
    assert f"the weights of step {record.validation.best_step} are kept, whose text_loss is best" in said.said
    files = [(tmp_path / name / "checkpoint").glob("*.safetensors") for name in ("whole", "cut")]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]
    assert measured(tmp_path / "cut") == measured(tmp_path / "whole")
    assert resumed.validation
    assert resumed.validation.model_dump(exclude={"seconds"}) == record.validation.model_dump(exclude={"seconds"})
    assert not (tmp_path / "cut" / "work").exists()


def test_best_weights_of_a_checkpoint_outlive_those_that_came_later(
    start: Run, llava_builder: Any, data: Any, tmp_path: Path
) -> None:
    """What is best after a checkpoint, and is not made again, is not what the checkpoint goes on with."""
    config = WILD.model_copy(update={"lr": 5e-3, "metric_for_best_model": "loss", "max_steps": 5})
    with pytest.raises(KeyboardInterrupt):
        start(llava_builder(), "cut", config, held_out=data[1], progress=Killed(4))
    work = tmp_path / "cut" / "work"
    kept = (work / "checkpoint-2" / "best.safetensors").read_bytes()
    # The loss falls, so that the best step is the latest.
    assert (work / "best" / "trainable.safetensors").read_bytes() != kept
    assert (work / "checkpoint-2" / "trainable.safetensors").read_bytes() == kept


def test_training_stops_early(start: Run, llava_builder: Any, data: Any, tmp_path: Path, monkeypatch: Any) -> None:
    config = WILD.model_copy(
        update={"early_stopping_patience": 2, "early_stopping_threshold": 50.0, "save_steps": 1, "keep": "last"}
    )
    whole, again = llava_builder(), llava_builder()
    record = start(whole, "whole", config, held_out=data[1])
    # Nothing is better than the first measurement by so much.
    assert (record.steps, len(rows(tmp_path / "whole"))) == (3, 3)
    assert record.validation
    assert (record.validation.stopped_early, record.validation.kept_step) == (True, 3)
    with monkeypatch.context() as patch:
        patch.setattr("striate.stages.train.save_model", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            start(llava_builder(), "cut", config, held_out=data[1])
    resumed = start(again, "cut", config, held_out=data[1])
    assert (resumed.steps, resumed.proof) == (3, record.proof)
    expected = weights(whole.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(again.model).items())


def test_patience_is_counted_as_transformers_does() -> None:
    from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments

    values = [3.0, 2.0, 1.95, 1.9, 2.5, 1.0, 0.99, 1.2, 0.98, 0.97, 0.96]
    args = TrainingArguments("none", metric_for_best_model="loss", greater_is_better=False, use_cpu=True)
    state, control, theirs = TrainerState(), TrainerControl(), EarlyStoppingCallback(3, 0.2)
    config = WILD.model_copy(update={"early_stopping_patience": 3, "early_stopping_threshold": 0.2})
    watch = Watch(config, 100)
    for step, value in enumerate(values, start=1):
        theirs.on_evaluate(args, state, control, {"eval_loss": value})
        state.best_metric = value if state.best_metric is None else min(value, state.best_metric)
        watch.add(step, {"text_loss": value})
        assert watch.stops == control.should_training_stop
        control.should_training_stop = False
        log = [{"step": n, VALIDATION: {"text_loss": v}} for n, v in enumerate(values[:step], start=1)]
        assert Watch(config, 100, log).best == values.index(min(values[:step])) + 1


def test_of_exact_matches_the_most_are_best() -> None:
    watch = Watch(WILD.model_copy(update={"metric_for_best_model": "exact_match", "early_stopping_patience": 2}), 9)
    better = [
        watch.add(step, {"exact_match": value, "loss": value}) for step, value in enumerate((0.2, 0.5, 0.5, 0.1), 1)
    ]
    assert (better, watch.best, watch.stops) == ([True, True, False, False], 2, True)


def test_measurements_are_due_about_ten_times_and_at_the_end() -> None:
    config = TrainSection()
    due = {steps: [step for step in range(1, steps + 1) if Watch(config, steps).due(step)] for steps in (3, 25, 100)}
    assert due == {3: [1, 2, 3], 25: [3, 6, 9, 12, 15, 18, 21, 24, 25], 100: list(range(10, 101, 10))}


def test_what_is_refused(start: Run, llava_builder: Any, data: Any, monkeypatch: Any) -> None:
    with pytest.raises(TrainingError, match=r"train.keep follows from held-out samples, and there are none"):
        start(llava_builder(), "none", WILD)
    only = WILD.model_copy(update={"metric_for_best_model": "text_loss"})
    with pytest.raises(TrainingError, match=r"text_loss, and of 5 held-out samples 5 have a picture"):
        start(llava_builder(), "kind", only, held_out=data[1][:5])
    exact = WILD.model_copy(update={"metric_for_best_model": "visual_exact_match"})
    with pytest.raises(TrainingError, match=r"visual_exact_match, and of 3 held-out samples 0 have a picture"):
        start(llava_builder(), "texts", exact, held_out=TEXTS)
    with pytest.raises(KeyboardInterrupt):
        start(llava_builder(), "cut", WILD, held_out=data[1], progress=Killed(4))
    for config, held_out, changed in (
        (WILD.model_copy(update={"keep": "last"}), data[1], "train.keep"),
        (WILD, data[1][:4], "data.validate"),
    ):
        with pytest.raises(TrainingError, match=f"is of another training run: {changed} changed"):
            start(llava_builder(), "cut", config, held_out=held_out)
    monkeypatch.setattr("striate.training.preflight_checks.sharding", lambda: "deepspeed")
    with pytest.raises(TrainingError, match=r"data\.validate is set, and weights are sharded by deepspeed"):
        start(llava_builder(), "zero", LORA, held_out=data[1])


def test_a_validation_loss_that_is_no_number_stops(start: Run, llava_builder: Any, data: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(held_out_loss, "answer_tally", lambda *_: torch.tensor([float("nan"), 3, 0, 1]))
    with pytest.raises(TrainingError, match="training diverged at step 2: validation loss nan"):
        start(llava_builder(), "nan", LORA, held_out=data[1])
