"""Generate greedy answers and words in left-padded batches with a KV cache."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from striate.data.chat_template.rendering import Renderer
from striate.data.collate import Collator
from striate.data.samples import Message, Sample
from striate.errors import DataError
from striate.models.interventions.image_feature_cache import cached_image_features
from striate.models.io.placing import on_device
from striate.models.structure.anatomy import unwrap
from striate.tasks.inference.greedy_decode import before_end, decode
from striate.tasks.inference.prefix_sharing import SharedPrefixes
from striate.tasks.inference.prompt_windows import Prompt, windows
from striate.tasks.inference.prompts import plain_context
from striate.tasks.inference.run_state import AskState
from striate.tasks.inference.text_tokens import check_length, context_limit, encode
from striate.tasks.inference.token_batches import padded, run_in_batches
from striate.tasks.packs.items import Item, Reply

WORD_TOKENS = 12
WORD_AND_SPACE = re.compile(r"\s*\S+\s")
PROBE = "ANSWER"
WINDOW = 4
SHORTEN = "shorten or remove that item, or lower evaluate.max_new_tokens"


def answer_replies(
    model: Any, processor: Any, items: Sequence[Item], *, max_new_tokens: int, state: AskState
) -> list[Reply]:
    """Return the greedy answer to every item's question, asked with the processor's chat template.

    An answer ends at an end-of-turn token or after `max_new_tokens` tokens. Only new tokens are decoded. Items with
    and without an image don't share a batch. Where the model allows it (see `SharedPrefixes`), prompts that begin
    with the same picture share that prefix.

    Raises:
        DataError: a picture that can't be read, or a prompt that leaves no room for the answer.
    """
    room = room_for_prompts(context_limit(unwrap(model)), max_new_tokens)
    collator = Collator(processor, room, train=False, limits=state.limits, shorten=SHORTEN)
    replies: dict[int, Reply] = {}
    with cached_image_features(model) as feature_cache:
        prefixes = SharedPrefixes(model, collator, state.counts, feature_cache)
        answerer = _Answerer(
            model, processor.tokenizer, collator, prefixes, end_ids(model, processor), max_new_tokens, state
        )
        for has_image in (True, False):
            places = [index for index, item in enumerate(items) if bool(item.images) == has_image]
            group = [items[index] for index in places]
            for window in windows(group, collator, WINDOW * state.budget.rows):
                answers = run_in_batches(
                    window,
                    answerer.replies,
                    length=lambda prompt: len(prompt.ids) + max_new_tokens,
                    order=_prefixes_together(window),
                    read=lambda prompt: len(prompt.ids) - (prompt.prefix_length if prefixes.shared else 0),
                    rows=lambda prompt: 1,
                    budget=state.budget,
                    finished=state.finisher([group[prompt.place] for prompt in window]),
                )
                replies.update({places[prompt.place]: reply for prompt, reply in zip(window, answers, strict=True)})
    return [replies[index] for index in range(len(items))]


def room_for_prompts(context: int, max_new_tokens: int) -> int:
    """Return the most tokens of a prompt that leaves room for its answer in a context of `context` tokens."""
    return max(context - max_new_tokens, 1)


@dataclass(frozen=True)
class _Answerer:
    """Answers batches of prompts: decodes by itself where prefixes can be shared, else by the model's `generate`."""

    model: Any
    tokenizer: Any
    collator: Collator
    prefixes: SharedPrefixes
    ends: list[int]
    max_new_tokens: int
    state: AskState

    def replies(self, batch: list[Prompt]) -> list[Reply]:
        rows = self.prefixes.prefill(batch)
        if rows is not None:
            new_tokens = decode(self.model, rows, self.ends, self.max_new_tokens)
        else:
            inputs = on_device(self.model, self.collator.join_prompts([prompt.encoded for prompt in batch]))
            with self.prefixes.features_of(batch):
                new_tokens = generate_greedily(self.model, self.tokenizer, inputs, self.ends, self.max_new_tokens)
        self.state.counts.prompt_tokens += sum(len(prompt.ids) for prompt in batch)
        return _as_replies(self.tokenizer, new_tokens, self.state)


def word_replies(model: Any, processor: Any, items: Sequence[Item], state: AskState) -> list[Reply]:
    """Return the text with which the model continues every item's context, up to the end of its first word.

    The context is plain text, without a chat template. Decoding is greedy and ends at the first white space after a
    word, at an end token, or after 12 tokens.

    Raises:
        DataError: a context that leaves no room for a word.
    """
    tokenizer, core = processor.tokenizer, unwrap(model)
    encoded = [encode(tokenizer, plain_context(item), 0).tokens for item in items]
    for item, tokens in zip(items, encoded, strict=True):
        check_length(len(tokens) + WORD_TOKENS, context_limit(core), item.id)
        if not tokens:
            raise DataError(f"item {item.id!r}: its context has no tokens", "a context with text", "fix that item")
    ends = _text_end_ids(model, tokenizer)

    def ask(batch: list[tuple[int, ...]]) -> list[Reply]:
        state.counts.prompt_tokens += sum(map(len, batch))
        ids, mask = padded(batch, 0, "left", core.device)
        stop = StoppingCriteriaList([_WordEnded(tokenizer, ids.shape[1])])
        inputs = {"input_ids": ids, "attention_mask": mask}
        new_tokens = generate_greedily(model, tokenizer, inputs, ends, WORD_TOKENS, stopping_criteria=stop)
        return _as_replies(tokenizer, new_tokens, state)

    return run_in_batches(
        encoded,
        ask,
        length=lambda tokens: len(tokens) + WORD_TOKENS,
        rows=lambda tokens: 1,
        budget=state.budget,
        finished=state.finisher(items),
    )


def _prefixes_together(window: Sequence[Prompt]) -> Callable[[Prompt], tuple[int, ...]]:
    """Return a sort key by the longest prompt of a prefix, that keeps prompts with equal prefixes together."""
    longest: dict[Any, int] = {}
    for prompt in window:
        longest[prompt.prefix] = max(longest.get(prompt.prefix, 0), len(prompt.ids))
    places = {prefix: place for place, prefix in enumerate(longest)}
    return lambda prompt: (longest[prompt.prefix], places[prompt.prefix], len(prompt.ids))


def end_ids(model: Any, processor: Any) -> list[int]:
    """Return the ids that end an answer: those that end any text, and the chat template's end of turn."""
    turn = _end_of_turn(processor)
    return sorted({*_text_end_ids(model, processor.tokenizer), *([] if turn is None else [turn])})


def _text_end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return the ids that end any text: the model's and the tokenizer's own."""
    configured = getattr(unwrap(model).generation_config, "eos_token_id", None)
    model_ids = list(configured) if isinstance(configured, list | tuple) else [configured]
    return sorted({token for token in [*model_ids, tokenizer.eos_token_id] if token is not None})


def _end_of_turn(processor: Any) -> int | None:
    """Return the id of the special token that the chat template writes after an answer, or None."""
    conversation = Renderer(processor).conversation(Sample("", (Message("user", "Q"), Message("assistant", PROBE))))
    after = conversation.text[: conversation.answers[0].end].rpartition(PROBE)[2].strip()
    tokens = processor.tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
    return tokens[0] if len(tokens) == 1 else None


def generate_greedily(
    model: Any, tokenizer: Any, inputs: dict[str, Tensor], ends: list[int], max_new_tokens: int, **options: Any
) -> list[list[int]]:
    """Return the model's own greedy continuation of each row of `inputs`, up to and without the first of `ends`."""
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, use_cache=True, pad_token_id=padding, eos_token_id=ends or None
    )
    with _plain_generation(model):
        output = unwrap(model).generate(**inputs, generation_config=config, **options)
    new_rows = output[:, inputs["input_ids"].shape[1] :].tolist()
    return [before_end(row, {*ends, padding}) for row in new_rows]


def _as_replies(tokenizer: Any, rows: list[list[int]], state: AskState) -> list[Reply]:
    """Return the text of each row of new tokens, which are counted."""
    state.counts.new_tokens += sum(map(len, rows))
    return [Reply(text=text) for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


@contextmanager
def _plain_generation(model: Any) -> Iterator[None]:
    """Set aside the model's own generation settings: sampling and penalties that come with a checkpoint."""
    core = unwrap(model)
    own = core.generation_config
    core.generation_config = GenerationConfig()
    try:
        yield
    finally:
        core.generation_config = own


class _WordEnded(StoppingCriteria):
    """Ends a row once its new tokens hold a word and the white space after it."""

    def __init__(self, tokenizer: Any, prompt_length: int) -> None:
        self._tokenizer = tokenizer
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return a bool for each row: whether its word is complete."""
        texts = self._tokenizer.batch_decode(input_ids[:, self._prompt_length :], skip_special_tokens=True)
        ended = [WORD_AND_SPACE.match(text) is not None for text in texts]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)
