"""Packed rows of few lengths, when CUDA graphs are chosen, metrics read late, and inputs that wait for nothing."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from striate.artifacts import Region, TrainRecord
from striate.config import LoraSection, MachineSection, TrainSection
from striate.data.collate import Collator
from striate.data.packing import FILLER, SEGMENTS
from striate.data.reading import read_samples
from striate.data.samples import Sample
from striate.errors import TrainingError
from striate.models.io.load import Loaded
from striate.stages.train import train
from striate.training import callbacks, loss, session
from striate.training.checkpointing.checkpoints import COMPLETE
from striate.training.compile.cuda_graphs import GraphedSteps
from striate.training.compile.policy import ANSWERS_TOGETHER, LayerExecution, with_graphs
from striate.training.inputs.wait_free import WaitFreeInputs
from striate.training.metrics.async_metrics import DeferredMetrics, Facts
from striate.training.metrics.metrics_log import MetricsLog

REGION = Region(layers=(1, 3), num_layers=4, spec="ids:1,3")
FULL = TrainSection(method="full", batch_size=4, lr=1e-3, warmup_ratio=0, max_length=96, max_steps=5, packing=True)
LORA = FULL.model_copy(update={"method": "lora", "lora": LoraSection(r=4, alpha=8, dropout=0.2)})
logging.getLogger("torch.__trace").propagate = False
Run = Callable[..., tuple[TrainRecord, list[dict[str, Any]], list[str]]]


class Lines:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def track(self, title: str, total: int) -> Any:
        return contextlib.nullcontext(lambda count=1: None)


@pytest.fixture
def samples(pack_dir: Path) -> list[Sample]:
    return read_samples(pack_dir)[:4]


@pytest.fixture
def run(tmp_path: Path, samples: list[Sample]) -> Run:
    def start(
        loaded: Loaded, name: str, config: TrainSection, **machine: Any
    ) -> tuple[TrainRecord, list[dict[str, Any]], list[str]]:
        lines = Lines()
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
            base_path="base",
            progress=lines,  # type: ignore[arg-type]
        )
        rows = (tmp_path / name / "train_log.jsonl").read_text().splitlines()
        return record, [json.loads(row) for row in rows], lines.said

    return start


def test_a_filled_row(tiny_llava: Loaded, samples: list[Sample]) -> None:
    collator = Collator(tiny_llava.processor, 96, train=True)
    items = collator.encode_each(samples)
    row, filled = collator.pack(items), collator.pack(items, 100)
    tokens = row["input_ids"].shape[1]
    assert filled["input_ids"].shape[1] % 100 == 0
    added = filled[SEGMENTS][len(row[SEGMENTS]) :, 0]
    assert int(filled[FILLER]) == filled["input_ids"].shape[1] - tokens == int(added.sum())
    assert int(added.max()) <= int(row[SEGMENTS][:, 0].max())
    assert torch.equal(filled["labels"][:, :tokens], row["labels"])
    assert bool((filled["labels"][:, tokens:] == -100).all())
    assert filled.keys() - row.keys() == {FILLER}


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({}, "machine.graphs has no effect: layers run uncompiled"),
        ({"compile": "on"}, "machine.graphs has no effect: the model is not on a CUDA device"),
    ],
)
def test_graphs_without_effect_are_said(tiny_llava: Loaded, run: Run, more: Any, line: str) -> None:
    config = FULL.model_copy(update={"max_steps": 1})
    # What is said comes before anything is compiled.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "compiled_layers", partial(session.compiled_layers, backend="eager"))
        _, _, said = run(tiny_llava, "one", config, graphs="on", **more)
    assert line in said


def test_when_graphs_are_chosen() -> None:
    """By themselves for small layers on packed rows alone, and never where layers run otherwise."""
    compiled, auto, on = LayerExecution(compiled=True), MachineSection(pack_tokens=8192), MachineSection(graphs="on")
    small = partial(with_graphs, small=True, on_card=True)
    assert small(compiled, FULL, auto) == LayerExecution(True, graphs=True, fill=2048, answers=ANSWERS_TOGETHER)
    assert not with_graphs(compiled, FULL, auto, small=False, on_card=True).graphs
    assert with_graphs(compiled, FULL, on, small=False, on_card=True).graphs
    assert not small(compiled, FULL.model_copy(update={"packing": False}), auto).graphs
    assert not small(LayerExecution(), FULL, auto).graphs
    assert not small(compiled, FULL, MachineSection(graphs="off")).graphs
    recomputed = small(LayerExecution(compiled=True, recomputed=frozenset({1})), FULL, on)
    assert recomputed.lines == ("machine.graphs has no effect: layers are run again in the backward pass",)


def test_gradients_leave_the_memory_of_graphs() -> None:
    """What a replay writes to again is no place for a gradient that is added to or read later."""
    layer = torch.nn.Linear(3, 3)
    steps, pool = GraphedSteps(layer), torch.zeros(3, 3)
    for count in (1, 2):
        with steps.serving({}, {}):
            pool.fill_(float(count))
            if layer.weight.grad is None:
                layer.weight.grad = pool
            else:
                layer.weight.grad += pool
        assert layer.weight.grad.data_ptr() != pool.data_ptr()
    assert torch.equal(layer.weight.grad, torch.full((3, 3), 3.0))


def late(patch: pytest.MonkeyPatch) -> None:
    """Read numbers a step late, as on CUDA."""
    patch.setattr(callbacks, "DeferredMetrics", lambda write, late: DeferredMetrics(write, late=1))


def test_numbers_read_late_are_the_same(tiny_llava: Loaded, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    other = copy.deepcopy(tiny_llava)
    _, rows, _ = run(tiny_llava, "now", FULL, compile="off")
    late(monkeypatch)
    record, found, _ = run(other, "late", FULL, compile="off")
    timed = ("seconds",)
    assert [{k: v for k, v in row.items() if k not in timed} for row in found] == [
        {k: v for k, v in row.items() if k not in timed} for row in rows
    ]
    assert all(row["seconds"] > 0 for row in found)
    assert record.seconds == pytest.approx(sum(row["seconds"] for row in found))


def test_divergence_is_found_a_step_late(
    tiny_llava: Loaded, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same error, naming the step; no checkpoint is written of what followed it."""
    late(monkeypatch)
    compute = loss.answer_loss
    calls: list[int] = []

    def broken(model: Any, inputs: Any, count: Any = None) -> torch.Tensor:
        calls.append(1)
        return compute(model, inputs, count) * (torch.nan if len(calls) == 3 else 1.0)

    monkeypatch.setattr(loss, "answer_loss", broken)
    with pytest.raises(TrainingError) as error:
        run(tiny_llava, "bad", FULL.model_copy(update={"save_steps": 3}), compile="off")
    assert str(error.value).startswith("training diverged at step 3: loss nan")
    assert len((tmp_path / "bad" / "train_log.jsonl").read_text().splitlines()) == 2
    assert not list((tmp_path / "bad" / "work").glob(f"checkpoint-*/{COMPLETE}"))


def test_a_late_reader_keeps_order_and_ends(tmp_path: Path) -> None:
    written: list[tuple[int, float, float | None, float]] = []
    more: list[dict[str, Any]] = []

    def write(facts: Facts, loss: float, norm: float | None) -> None:
        written.append((facts.step, loss, norm, facts.at))
        more.append(facts.more)

    readings = DeferredMetrics(write, late=1)
    for step in (1, 2, 3):
        norm = None if step == 2 else torch.tensor(0.5 * step)
        counts = (10 * step, 2**40 + step)
        tokens = {1: torch.tensor(counts), 2: counts, 3: None}[step]
        readings.add(Facts(step, 0.1, 0.2, {"open": [1]}, float(step), tokens), torch.tensor(float(step)), norm)
        assert len(written) == step - 1
    readings.flush()
    readings.flush()
    assert [row[:3] for row in written] == [(1, 1.0, 0.5), (2, 2.0, None), (3, 3.0, 1.5)]
    assert [row[3] for row in written[:2]] == [1.0, 2.0]
    counted = [{"open": [1], "tokens": 10 * step, "slots": 2**40 + step} for step in (1, 2)]
    assert more == [*counted, {"open": [1]}]
    # What is waited for ends now.
    assert written[2][3] > 3.0
    with MetricsLog(tmp_path / "log.jsonl") as log:
        log.write(1, 1.0, 0.5, 0.1, 0.2, now=log._since + 2.0)
    assert log.rows[0]["seconds"] == pytest.approx(2.0)


@pytest.mark.parametrize("cache", ["off", "memory"])
def test_inputs_that_wait_for_nothing(
    tiny_llava: Loaded, run: Run, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    """Not a bit changes."""
    other = copy.deepcopy(tiny_llava)
    config = FULL.model_copy(update={"packing": False})
    _, plain, _ = run(tiny_llava, "plain", config, compile="off", cache_vision=cache)
    inputs: list[WaitFreeInputs] = []

    def made(*args: Any) -> WaitFreeInputs:
        inputs.append(WaitFreeInputs(*args))
        return inputs[-1]

    monkeypatch.setattr(session, "WaitFreeInputs", made)
    monkeypatch.setattr(session.TrainingSession, "_on_card", True)
    _, found, _ = run(other, "placed", config, compile="off", cache_vision=cache)
    assert inputs[0]._compared
    assert not inputs[0].refused
    assert [row["loss"] for row in found] == [row["loss"] for row in plain]
    expected = tiny_llava.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.model.state_dict().items())
