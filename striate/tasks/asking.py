"""Ask a model every item of its packs, each in the way that its metric needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from striate.models.anatomy import check_decoder_only, find_anatomy
from striate.tasks import metric_of
from striate.tasks.batches import asking_mode
from striate.tasks.causality import check_causal
from striate.tasks.generation import answer_replies, word_replies
from striate.tasks.items import Item, Reply
from striate.tasks.likelihood import choice_replies, text_replies
from striate.tasks.metric import AskingMode


def ask(
    model: Any,
    processor: Any,
    items: Sequence[Item],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Reply]:
    """Return the model's reply to every item, in the order of `items`.

    Items that are asked in the same way share batches, sorted by length. The replies don't depend on `batch_size`
    (in float32; in half precision rounding may turn near ties). The model is in eval mode meanwhile, and as before
    afterwards.

    Args:
        model: an LVLM, PEFT-wrapped or not.
        processor: its processor.
        items: what to ask; packs may be mixed.
        max_new_tokens: the longest answer, in tokens.
        batch_size: the most rows that run side by side.
        advance: called with the number of items done.

    Raises:
        DataError: a picture that can't be read, or an item that is longer than the model's context.
        ModelError: not an LVLM, or an encoder-decoder; or plain text is to be scored, but the model does not read it
            from left to right.
    """
    check_decoder_only(find_anatomy(model))
    places: dict[AskingMode, list[int]] = {}
    for index, item in enumerate(items):
        places.setdefault(metric_of(item.metric).mode, []).append(index)
    replies: dict[int, Reply] = {}
    with asking_mode(model):
        for mode, indices in places.items():
            group = [items[index] for index in indices]
            found = _ask_in_mode(mode, model, processor, group, max_new_tokens, batch_size, advance)
            replies.update(zip(indices, found, strict=True))
    return [replies[index] for index in range(len(items))]


def _ask_in_mode(
    mode: AskingMode,
    model: Any,
    processor: Any,
    items: list[Item],
    max_new_tokens: int,
    batch_size: int,
    advance: Callable[[int], None],
) -> list[Reply]:
    """Return the replies to items that are all asked in `mode`."""
    if mode == "generate":
        return answer_replies(
            model, processor, items, max_new_tokens=max_new_tokens, batch_size=batch_size, advance=advance
        )
    check_causal(model, processor.tokenizer)
    if mode == "next_word":
        return word_replies(model, processor, items, batch_size, advance)
    likelihood = choice_replies if mode == "choose" else text_replies
    return likelihood(model, processor.tokenizer, items, batch_size, advance)
