"""The evaluate stage, end to end on a tiny LVLM."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from striate.artifacts import EvalRecord, Prediction, read_document, read_lines, write_document, write_lines
from striate.config import EvaluateSection, MachineSection
from striate.errors import ArtifactError, DataError
from striate.progress import Advance
from striate.stages.evaluate import evaluate
from striate.tasks.packs.reader import Pack, read_pack
from striate.tasks.scoring.compare import compare_predictions

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

CONFIG = EvaluateSection(max_new_tokens=6, bootstrap=200)


class Counting:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.bars: dict[str, list[int]] = {}

    @contextmanager
    def track(self, label: str, total: int) -> Iterator[Advance]:
        counts = self.bars.setdefault(label, [total, 0])

        def advance(count: int) -> None:
            counts[1] += count

        yield advance

    def say(self, text: str) -> None:
        raise AssertionError(text)


@pytest.fixture
def packs(pack_dir: Path, tmp_path: Path) -> list[Pack]:
    folder = tmp_path / "reading"
    folder.mkdir()
    rows = [
        {"id": "a", "text": "The square is red.", "metric": "perplexity", "task": "prose"},
        {"id": "b", "text": "The quick brown fox jumps over the lazy dog", "metric": "perplexity", "task": "prose"},
        {
            "id": "c",
            "question": "Is ice cold?",
            "choices": ["yes", "no"],
            "answer_index": 0,
            "metric": "choice_logprob",
        },
        {"id": "d", "context": "The quick brown", "continuation": "fox", "metric": "last_word"},
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [read_pack(pack_dir, limit=12), read_pack(folder)]


def run(
    loaded: Loaded, packs: list[Pack], label: str = "start", **options: object
) -> tuple[EvalRecord, list[Prediction]]:
    settings = {"config": CONFIG, "machine": MachineSection(), **options}
    return evaluate(loaded.model, loaded.processor, packs, label=label, model_name="tiny", **settings)  # type: ignore[arg-type]


def test_a_record_of_every_task_and_an_answer_to_every_item(tiny_llava: Loaded, packs: list[Pack]) -> None:
    progress = Counting()
    record, predictions = run(tiny_llava, packs, progress=progress, size_bytes=7)
    assert progress.bars == {"evaluate start": [16, 16]}
    assert [item.id for item in predictions] == [item.id for pack in packs for item in pack.items]
    assert [(task.pack, task.task, task.metric, task.kind, task.n) for task in record.tasks] == [
        ("pack", "colour", "exact", "visual", 3),
        ("pack", "statement", "choice", "visual", 3),
        ("pack", "name", "anls", "visual", 3),
        ("pack", "grounding", "iou50", "visual", 3),
        ("reading", "prose", "perplexity", "text", 2),
        ("reading", "reading", "choice_logprob", "text", 1),
        ("reading", "reading", "last_word", "text", 1),
    ]
    assert (record.label, record.model, record.num_layers, record.size_bytes) == ("start", "tiny", 4, 7)
    assert record.parameters == sum(parameter.numel() for parameter in tiny_llava.model.parameters())
    assert record.visual == 0.0
    assert record.text == (record.tasks[5].score + record.tasks[6].score) / 2
    assert record.seconds > 0
    assert record.peak_memory_gib > 0
    by_id = {item.id: item for item in predictions}
    assert by_id["choice-00"].unparsed
    assert by_id["iou50-00"].unparsed
    assert record.tasks[1].unparsed == 3
    assert by_id["exact-00"].expected == ("red",)
    assert by_id["c"].expected == ("yes",)
    assert by_id["c"].answer in ("yes", "no")
    assert by_id["a"].question == "The square is red."
    assert by_id["a"].answer.startswith("perplexity ")


def test_the_score_of_prose_is_the_mean_over_all_tokens(tiny_llava: Loaded, packs: list[Pack]) -> None:
    record, predictions = run(tiny_llava, packs[1:])
    nats = tokens = 0.0
    for item in predictions[:2]:
        ids = tiny_llava.processor.tokenizer(item.question, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = tiny_llava.model(input_ids=ids).logits[0, :-1].double()
        nats += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        tokens += ids.shape[1] - 1
    assert record.tasks[0].score == pytest.approx(nats / tokens, abs=1e-4)


def test_answers_do_not_depend_on_the_eval_batch(tiny_llava: Loaded, packs: list[Pack]) -> None:
    _, one = run(tiny_llava, packs, machine=MachineSection(eval_batch=1))
    _, many = run(tiny_llava, packs, machine=MachineSection(eval_batch=9))
    assert [item.model_dump(exclude={"score"}) for item in one] == [item.model_dump(exclude={"score"}) for item in many]
    assert [item.score for item in one] == pytest.approx([item.score for item in many], abs=1e-4)


def test_equal_seeds_give_equal_records(tiny_llava: Loaded, packs: list[Pack]) -> None:
    first, second = run(tiny_llava, packs, seed=3), run(tiny_llava, packs, seed=3)
    assert first[0].tasks == second[0].tasks
    assert first[1] == second[1]


def test_evaluating_changes_no_weight(tiny_llava: Loaded, packs: list[Pack]) -> None:
    before = {name: value.clone() for name, value in tiny_llava.model.state_dict().items()}
    run(tiny_llava, packs)
    after = tiny_llava.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_records_survive_the_disk_and_compare_there(tiny_llava: Loaded, packs: list[Pack], tmp_path: Path) -> None:
    record, predictions = run(tiny_llava, packs)
    write_document(tmp_path / "start.json", record)
    write_lines(tmp_path / "start.predictions.jsonl", predictions)
    stored = (
        read_document(tmp_path / "start.json", EvalRecord),
        read_lines(tmp_path / "start.predictions.jsonl", Prediction),
    )
    assert stored == (record, predictions)
    rows = compare_predictions(stored, (record, predictions), repetitions=200, seed=0)
    assert [row.task for row in rows if row.pack == "*"] == ["visual", "text"]
    assert all(row.difference == 0 for row in rows)
    # The packs hold a picture or two: no interval can hold.
    assert all((row.low, row.high) == (None, None) and row.no_interval for row in rows)


def test_a_changed_model_shows_in_the_comparison(tiny_llava: Loaded, packs: list[Pack]) -> None:
    start = run(tiny_llava, packs[1:])
    with torch.no_grad():
        tiny_llava.model.lm_head.weight.mul_(0.0)
    tuned = run(tiny_llava, packs[1:], label="tuned")
    prose = compare_predictions(start, tuned, repetitions=200, seed=0)[0]
    uniform = torch.log(torch.tensor(float(tiny_llava.model.config.get_text_config().vocab_size))).item()
    assert prose.score == pytest.approx(uniform, abs=1e-4)
    assert prose.label == "tuned"
    assert prose.retention is not None
    assert prose.retention == pytest.approx(
        100 * torch.tensor(prose.baseline_score - prose.score).exp().item(), rel=1e-4
    )


def test_other_items_are_not_compared(tiny_llava: Loaded, packs: list[Pack]) -> None:
    with pytest.raises(ArtifactError, match="did not answer the same items: 4 and 16"):
        compare_predictions(run(tiny_llava, packs), run(tiny_llava, packs[1:], label="tuned"), 200, 0)


def test_packs_must_be_there_and_differ_in_name(tiny_llava: Loaded, packs: list[Pack]) -> None:
    with pytest.raises(DataError, match="no test packs to evaluate on"):
        run(tiny_llava, [])
    with pytest.raises(DataError, match="two test packs are called 'pack'"):
        run(tiny_llava, [packs[0], packs[0]])
