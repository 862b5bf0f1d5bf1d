"""Pictures that are asked several times: read once, with the answers that they have when asked one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from striate.models.structure.anatomy import find_anatomy
from striate.tasks.inference import greedy_decode as greedy
from striate.tasks.inference import prefix_sharing as starts
from striate.tasks.inference.ask import ask
from striate.tasks.inference.generate import end_ids
from striate.tasks.inference.item_prefetch import ahead
from striate.tasks.packs.items import Item
from striate.tasks.packs.reader import read_pack

if TYPE_CHECKING:
    from striate.models.io.load import Loaded


@pytest.fixture(scope="module")
def alone(saved_pack: Path, llava_builder: Callable[..., Loaded]) -> list[str]:
    """The answer to every item of the pack, asked by `generate`, one at a time."""
    from striate.data.collate import Collator
    from striate.tasks.inference.prompts import chat_sample

    loaded, found = llava_builder(), []
    collator = Collator(loaded.processor, 500, train=False)
    ends = end_ids(loaded.model, loaded.processor)
    for item in read_pack(saved_pack).items:
        inputs = collator.encode_prompts([chat_sample(item)])
        output = loaded.model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=ends)
        new = output[0, inputs["input_ids"].shape[1] :].tolist()
        found.append(loaded.processor.tokenizer.decode(greedy.before_end(new, set(ends)), skip_special_tokens=True))
    return found


def encoded_rows(model: Any) -> list[int]:
    rows: list[int] = []
    encoder = model.get_submodule(find_anatomy(model).vision_names[0])
    encoder.register_forward_hook(lambda module, inputs, output: rows.append(len(output.last_hidden_state)))
    return rows


@pytest.mark.parametrize(("by_hand", "batch_size"), [(True, 2), (True, 7), (True, 64), (False, 7)])
def test_answers_equal_one_at_a_time_generate(
    tiny_llava: Loaded, pack_dir: Path, alone: list[str], batch_size: int, by_hand: bool
) -> None:
    assert len(set(alone)) > 8
    if not by_hand:
        tiny_llava.model.get_rope_index = None
    items = read_pack(pack_dir).items
    asked = ask(tiny_llava.model, tiny_llava.processor, items, max_new_tokens=8, batch_size=batch_size)
    assert [reply.text for reply in asked.replies] == alone
    assert asked.stats.pictures_encoded + asked.stats.pictures_reused == len(items)
    assert ("share that start" if by_hand else "features of pictures are kept") in asked.stats.reuse


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_picture_of_four_questions_is_encoded_once(tiny_llava: Loaded, pack_dir: Path, by_hand: bool) -> None:
    if not by_hand:
        tiny_llava.model.get_rope_index = None
    rows = encoded_rows(tiny_llava.model)
    stats = ask(tiny_llava.model, tiny_llava.processor, read_pack(pack_dir).items, max_new_tokens=2).stats
    assert (stats.pictures_encoded, stats.pictures_reused) == (12, 36)
    # Beyond the 12 pictures: those of the first batch's proof.
    assert 12 <= sum(rows) <= 12 + (6 if by_hand else 48)
    assert stats.items_per_second == 48 / stats.seconds
    assert stats.prompt_tokens > stats.shared_tokens >= 0
    assert (stats.shared_tokens > 0) == by_hand


def test_where_a_shared_start_continues_otherwise_the_model_generates(
    tiny_llava: Loaded, pack_dir: Path, alone: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill_shared = greedy.prefill_shared

    def otherwise(*args: Any) -> Any:
        rows = prefill_shared(*args)
        rows.logits = rows.logits.flip(-1)
        return rows

    for module in (greedy, starts):
        monkeypatch.setattr(module, "prefill_shared", otherwise)
    asked = ask(tiny_llava.model, tiny_llava.processor, read_pack(pack_dir).items, max_new_tokens=8)
    assert [reply.text for reply in asked.replies] == alone
    assert "a prompt that is read in two parts continues otherwise" in asked.stats.reuse


def test_text_and_pictures_mixed_do_not_depend_on_the_token_budget(tiny_llava: Loaded, pack_dir: Path) -> None:
    items = list(read_pack(pack_dir, limit=12).items)
    items += [
        Item(id=f"t{index}", pack="q", task="t", metric="exact", question="Is ice cold? " * (index + 1), answers=("x",))
        for index in range(5)
    ]
    expected = ask(tiny_llava.model, tiny_llava.processor, items, max_new_tokens=8, batch_size=1).replies
    for tokens in (60, 300, 5000):
        asked = ask(tiny_llava.model, tiny_llava.processor, items, max_new_tokens=8, token_budget=tokens)
        assert asked.replies == expected
        assert asked.stats.token_budget == tokens


def test_memory_that_runs_out_halfway_changes_no_answer(
    tiny_llava: Loaded, pack_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = read_pack(pack_dir).items
    expected = ask(tiny_llava.model, tiny_llava.processor, items, max_new_tokens=4).replies
    forward = tiny_llava.model.forward
    sizes: list[int] = []

    @wraps(forward)
    def small(*args: Any, **kwargs: Any) -> Any:
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 10:
            raise torch.OutOfMemoryError("too large")
        return forward(*args, **kwargs)

    monkeypatch.setattr(tiny_llava.model, "forward", small)
    asked = ask(tiny_llava.model, tiny_llava.processor, items, max_new_tokens=4)
    assert asked.replies == expected
    assert asked.stats.largest_batch <= 10
    assert 1 <= asked.stats.out_of_memory <= 4


def test_rows_that_have_ended_leave_the_batch(tiny_llava: Loaded, pack_dir: Path) -> None:
    model, processor = tiny_llava.model, tiny_llava.processor
    (end,) = end_ids(model, processor)
    sizes: list[int] = []

    def end_some(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        sizes.append(len(logits))
        logits = logits.clone()
        logits[: len(logits) // 2, :, end] = 1e4
        logits[len(logits) // 2 :, :, end] = -1e4
        return logits

    model.lm_head.register_forward_hook(end_some)
    # One question a picture: nothing is shared, and no proof is made.
    ask(model, processor, read_pack(pack_dir).items[:32:4], max_new_tokens=5)
    assert sizes == [8, 4, 2, 1, 1]


def test_work_ahead_keeps_its_order_and_passes_errors_on() -> None:
    assert list(ahead([lambda n=n: n * n for n in range(9)], depth=3)) == [n * n for n in range(9)]

    def fail() -> int:
        raise ValueError("third")

    done: list[int] = []
    with pytest.raises(ValueError, match="third"):
        done.extend(ahead([lambda: 1, lambda: 2, fail, lambda: 4], depth=1))
    begun: list[int] = []
    results = ahead([lambda n=n: begun.append(n) for n in range(100)], depth=2)
    next(results)
    results.close()
    assert len(begun) <= 5
