"""Ask a model every item of its packs, each in the way that its metric needs."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from striate.artifacts import AskingFacts
from striate.data.pictures import ORDINARY, PictureLimits
from striate.models.structure.anatomy import check_decoder_only, find_anatomy
from striate.tasks.inference.batch_budget import budget_for
from striate.tasks.inference.causality import check_causal
from striate.tasks.inference.finite_logits import finite_logits
from striate.tasks.inference.generate import answer_replies, word_replies
from striate.tasks.inference.likelihood import choice_replies, text_replies
from striate.tasks.inference.reply_journal import Journal
from striate.tasks.inference.run_state import AskState
from striate.tasks.inference.token_batches import asking_mode
from striate.tasks.metrics import METRICS
from striate.tasks.metrics.base import AskingMode
from striate.tasks.packs.items import Item, Reply


@dataclass(frozen=True)
class AskResult:
    """The reply to every item, in the order of the items, and how the model was asked."""

    replies: list[Reply]
    stats: AskingFacts


def ask(
    model: Any,
    processor: Any,
    items: Sequence[Item],
    *,
    max_new_tokens: int = 32,
    batch_size: int | None = None,
    token_budget: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
    journal: Journal | None = None,
    limits: PictureLimits = ORDINARY,
) -> AskResult:
    """Return the model's reply to every item, in the order of `items`, and how they were asked.

    Items that are asked in the same way share batches of similar length. The replies don't depend on the batches
    (in float32; in half precision rounding may turn near ties). The model is in eval mode meanwhile, and as before
    afterwards.

    Args:
        model: an LVLM, PEFT-wrapped or not.
        processor: its processor.
        items: what to ask; packs may be mixed.
        max_new_tokens: the longest answer, in tokens.
        batch_size: the most rows that run side by side; left out, what suits the device.
        token_budget: the most tokens of a batch, padding and new tokens included; left out, what suits the device.
        advance: called with the number of items done.
        journal: where replies are kept as they come; those that are there already are not asked again.
        limits: the largest picture that is decoded.

    Raises:
        DataError: a picture that can't be read, or an item that is longer than the model's context.
        ModelError: not an LVLM, or an encoder-decoder; its logits are NaN or infinite; or plain text is to be scored,
            but the model does not read it from left to right.
        ArtifactError: the journal can't be written.
    """
    begin = time.perf_counter()
    check_decoder_only(find_anatomy(model))
    known = journal.replies(items) if journal else {}
    advance(len(known))

    places: dict[AskingMode, list[int]] = {}
    for index, item in enumerate(items):
        if index not in known:
            places.setdefault(METRICS.get(item.metric).mode, []).append(index)
    replies = dict(known)
    with asking_mode(model), finite_logits(model) as check_logits:

        def keep(done: Sequence[Item], replies: Sequence[Reply]) -> None:
            check_logits()
            if journal:
                journal.add(done, replies)
            advance(len(done))

        state = AskState(budget_for(model, batch_size, token_budget), keep=keep, limits=limits)
        for mode, indices in places.items():
            group = [items[index] for index in indices]
            new_replies = _ask_in_mode(mode, model, processor, group, max_new_tokens, state)
            replies.update(zip(indices, new_replies, strict=True))
    stats = state.stats(len(items) - len(known), len(known), time.perf_counter() - begin)
    return AskResult([replies[index] for index in range(len(items))], stats)


def _ask_in_mode(
    mode: AskingMode, model: Any, processor: Any, items: list[Item], max_new_tokens: int, state: AskState
) -> list[Reply]:
    if mode == "generate":
        return answer_replies(model, processor, items, max_new_tokens=max_new_tokens, state=state)
    check_causal(model, processor.tokenizer)
    if mode == "next_word":
        return word_replies(model, processor, items, state)
    likelihood = choice_replies if mode == "choose" else text_replies
    return likelihood(model, processor.tokenizer, items, state)
