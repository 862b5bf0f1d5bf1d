"""Likelihoods and greedy words on random LVLMs of many families, against plain passes over one row."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from striate.dialogue.answering import _Words
from striate.errors import ModelError
from striate.tasks.inference import causality, likelihood
from striate.tasks.inference.generate import generate_greedily
from striate.tasks.inference.likelihood import choice_replies, text_replies
from striate.tasks.inference.run_state import AskState
from striate.tasks.inference.token_batches import asking_mode
from striate.tasks.packs.items import Item

END = 63


class NumberTokenizer:
    """Reads `7 8 9` as the tokens 7, 8 and 9, after a start token."""

    is_fast = True
    pad_token_id = 0

    def __call__(self, text: str, **options: Any) -> dict[str, Any]:
        found = list(re.finditer(r"\d+", text))
        spans = [(0, 0), *(match.span() for match in found)]
        return {"input_ids": [1, *(int(match[0]) for match in found)], "offset_mapping": spans}

    def decode(self, ids: int | list[int], **options: Any) -> str:
        return "".join(f"{token} " for token in ([ids] if isinstance(ids, int) else ids))

    def batch_decode(self, rows: list[list[int]], **options: Any) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]


def item(name: str, **fields: Any) -> Item:
    return Item(id=name, pack="p", task="t", metric="choice_logprob", **fields)


def plain(model: Any, text: str) -> torch.Tensor:
    ids = torch.tensor([NumberTokenizer()(text)["input_ids"]])
    with torch.no_grad():
        logs = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
    return logs.gather(-1, ids[0, 1:, None])[:, 0]


@pytest.fixture
def causal(family: tuple[Any, Any]) -> Any:
    """Each family that reads plain text from left to right; the others are refused, which has its own test."""
    if family[0].config.model_type == "paligemma":
        pytest.skip("PaliGemma looks ahead in its prompt: check_causal refuses it")
    return family[0]


def test_choices_on_every_family(causal: Any) -> None:
    model = causal
    items = [
        item("a", context="5 6 7 8 9 10 11", choices=("12", "13 14", "15 16 17")),
        item("b", context="20", choices=("21 22 23", "21 22 24")),
        item("c", context="30 31 32", choices=("33", "34")),
    ]
    with asking_mode(model):
        replies = choice_replies(model, NumberTokenizer(), items, AskState())
    for entry, reply in zip(items, replies, strict=True):
        for choice, total, count in zip(entry.choices, reply.logprobs, reply.tokens, strict=True):
            assert count == len(choice.split())
            assert total == pytest.approx(plain(model, f"{entry.context} {choice}")[-count:].sum().item(), abs=1e-3)


def test_texts_on_every_family(causal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = causal
    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", 9)
    items = [item(str(length), text=" ".join(map(str, range(5, 5 + length)))) for length in (3, 8, 14)]
    with asking_mode(model):
        replies = text_replies(model, NumberTokenizer(), items, AskState())
    for entry, reply in zip(items, replies, strict=True):
        assert reply.tokens == (len(entry.text.split()),)
        assert reply.logprobs[0] == pytest.approx(plain(model, entry.text).sum().item(), abs=1e-3)


def test_only_families_that_look_ahead_are_refused(family: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causality, "PROBE", "5 6 7 8 9 10 11 12")
    with asking_mode(family[0]):
        if family[0].config.model_type == "paligemma":
            with pytest.raises(ModelError, match="PaliGemmaForConditionalGeneration looks ahead in plain text"):
                causality.check_causal(family[0], NumberTokenizer())
        else:
            causality.check_causal(family[0], NumberTokenizer())


def test_greedy_rows_do_not_depend_on_their_padding(causal: Any) -> None:
    model = causal
    rows = [[1, 7, 8, 9, 10, 11, 12], [1, 20, 21]]
    tokenizer = NumberTokenizer()

    def ask(batch: list[list[int]]) -> list[str]:
        ids, mask = likelihood.padded(batch, 0, "left", torch.device("cpu"))
        with asking_mode(model):
            new_tokens = generate_greedily(model, tokenizer, {"input_ids": ids, "attention_mask": mask}, [END], 6)
        return tokenizer.batch_decode(new_tokens, skip_special_tokens=True)

    assert ask(rows) == [*ask(rows[:1]), *ask(rows[1:])]


def test_an_answer_streams_on_every_family(family: tuple[Any, Any]) -> None:
    ids = torch.tensor([[1, 5, 6, 7, 8]])
    pieces: list[str] = []
    words = _Words(NumberTokenizer(), [], pieces.append)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with asking_mode(family[0]):
        (tokens,) = generate_greedily(family[0], NumberTokenizer(), inputs, [], 4, streamer=words)
    assert len(tokens) == 4
    assert "".join(pieces).split() == [str(token) for token in tokens]
    assert len(pieces) > 1
    assert words.first > 0
