"""Which test items a model could not be asked: looked up before it is loaded, from its config and its processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from striate.data.checks.length_check import oversized
from striate.data.pictures import PictureLimits
from striate.errors import DataError
from striate.tasks.inference.generate import WORD_TOKENS, room_for_prompts
from striate.tasks.inference.likelihood import choice_texts, text_pieces
from striate.tasks.inference.prompts import chat_sample, plain_context
from striate.tasks.inference.text_tokens import check_length, context_of, encode
from striate.tasks.metrics import METRICS
from striate.tasks.packs.items import Item


def check_items(processor: Any, config: Any, items: Sequence[Item], max_new_tokens: int, limits: PictureLimits) -> int:
    """Return the most tokens that the model takes; every item fits into them as it will be asked.

    Args:
        processor: the model's.
        config: the model's.
        items: what will be asked.
        max_new_tokens: the longest answer.
        limits: the largest picture that is decoded.

    Raises:
        DataError: items that are too long, or have nothing to score.
        ModelError: the processor has no chat template, or can't tell which characters a token covers.
    """
    context = context_of(config)
    generated = [item for item in items if METRICS.get(item.metric).mode == "generate"]
    wrong: dict[str, str] = {}
    if generated:
        room, prompts = room_for_prompts(context, max_new_tokens), [chat_sample(item) for item in generated]
        wrong = oversized(processor, prompts, room, limits, train=False)
    for item in items:
        try:
            _check_text(processor.tokenizer, item, context)
        except DataError as error:
            wrong[item.id] = error.given
    if wrong:
        raise DataError(
            "\n".join(wrong.values()),
            f"items that fit into the model's context of {context} tokens, with room for evaluate.max_new_tokens",
            "shorten or remove these items, or lower evaluate.max_new_tokens",
        )
    return context


def _check_text(tokenizer: Any, item: Item, context: int) -> None:
    mode = METRICS.get(item.metric).mode
    if mode == "choose":
        choice_texts(tokenizer, item, context)
    elif mode == "next_word":
        check_length(len(encode(tokenizer, plain_context(item), 0).tokens) + WORD_TOKENS, context, item.id)
    elif mode == "perplexity":
        text_pieces(tokenizer, item, context)
