"""An evaluation that is killed goes on without asking twice, and ends as if it had not been."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from striate.config import EvaluateSection, MachineSection
from striate.stages.evaluate import evaluate
from striate.tasks.inference import generate as generation
from striate.tasks.inference.reply_journal import Journal
from striate.tasks.packs.reader import read_pack

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

OPTIONS: dict[str, Any] = {
    "label": "start",
    "model_name": "tiny",
    "config": EvaluateSection(max_new_tokens=4, bootstrap=100),
    "machine": MachineSection(eval_batch=3),
}


def ask_slowly(loaded: Loaded, pack: Path, journal: Path, told: int) -> None:
    """Evaluate, and wait after each batch was kept and told of, so that a kill comes between two batches."""
    add = Journal.add

    def slowly(self: Journal, items: Any, replies: Any) -> None:
        add(self, items, replies)
        os.write(told, f"{len(items)}\n".encode())
        time.sleep(0.4)

    Journal.add = slowly  # type: ignore[method-assign]
    evaluate(loaded.model, loaded.processor, [read_pack(pack)], journal=journal, journal_key="k", **OPTIONS)


def killed_after_two_batches(*arguments: Any) -> int:
    """Return how many items a child process kept before it was killed; a fork, as it has imported everything."""
    heard, told = os.pipe()
    child = os.fork()
    if not child:
        try:
            ask_slowly(*arguments, told)
        finally:
            os._exit(0)
    os.close(told)
    with os.fdopen(heard) as lines:
        kept = int(lines.readline()) + int(lines.readline())
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    return kept


def test_a_killed_evaluation_goes_on_without_asking_twice(
    tiny_llava: Loaded, pack_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "eval" / "start.replies.jsonl"
    kept = killed_after_two_batches(tiny_llava, pack_dir, journal)
    assert 0 < kept < 48
    packs = [read_pack(pack_dir)]
    plain, expected = evaluate(tiny_llava.model, tiny_llava.processor, packs, **OPTIONS)
    asked: list[int] = []
    windows = generation.windows

    def watched(items: Any, *rest: Any) -> Any:
        asked.append(len(items))
        return windows(items, *rest)

    monkeypatch.setattr(generation, "windows", watched)
    record, predictions = evaluate(
        tiny_llava.model, tiny_llava.processor, packs, journal=journal, journal_key="k", **OPTIONS
    )
    assert predictions == expected
    assert record.tasks == plain.tasks
    assert record.asking is not None
    assert record.asking.resumed in (kept, kept + 3)
    assert sum(asked) == record.asking.items == 48 - record.asking.resumed


def test_nothing_is_asked_when_all_replies_are_kept(tiny_llava: Loaded, pack_dir: Path, tmp_path: Path) -> None:
    packs, journal = [read_pack(pack_dir, limit=8)], tmp_path / "replies.jsonl"
    first = evaluate(tiny_llava.model, tiny_llava.processor, packs, journal=journal, journal_key="k", **OPTIONS)
    begin = time.perf_counter()
    again = evaluate(tiny_llava.model, tiny_llava.processor, packs, journal=journal, journal_key="k", **OPTIONS)
    assert time.perf_counter() - begin < first[0].seconds + 1
    assert again[1] == first[1]
    assert again[0].asking is not None
    assert (again[0].asking.items, again[0].asking.resumed, again[0].asking.batches) == (0, 8, 0)
    assert again[0].asking.items_per_second == 0
