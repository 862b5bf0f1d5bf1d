"""Answers a conversation by the model's own greedy `generate`, and gives the words as they come."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import TextStreamer

from striate.data.collate import Collator
from striate.data.samples import Sample
from striate.models.interventions.eval_mode import evaluating
from striate.models.io.placing import on_device
from striate.models.structure.anatomy import check_decoder_only, find_anatomy, unwrap
from striate.tasks.inference.finite_logits import finite_logits
from striate.tasks.inference.generate import end_ids, generate_greedily, room_for_prompts
from striate.tasks.inference.text_tokens import context_limit

SHORTEN = "ask for less, show fewer pictures, begin a new conversation, or lower --max-new-tokens"


@dataclass(frozen=True)
class Answer:
    """One answer of one model.

    Attributes:
        text: without special tokens.
        tokens: how many were written, without the one that ends the answer.
        prompt_tokens: how many were read, image tokens included.
        image_tokens: how many of those are image tokens.
        first_token_seconds: from the tokens of the prompt to the first new one, vision encoder included.
        seconds: of the whole answer, reading the pictures included.
    """

    text: str
    tokens: int
    prompt_tokens: int
    image_tokens: int
    first_token_seconds: float
    seconds: float


class Answerer:
    """A model that is asked one conversation at a time."""

    def __init__(self, model: Any, processor: Any, max_new_tokens: int) -> None:
        """Take an LVLM with its processor, and how long an answer may be.

        Raises:
            ModelError: no LVLM, an encoder-decoder, or a processor without chat template.
        """
        self._anatomy = find_anatomy(model)
        check_decoder_only(self._anatomy)
        self._model, self._tokenizer, self._max_new_tokens = model, processor.tokenizer, max_new_tokens
        room = room_for_prompts(context_limit(unwrap(model)), max_new_tokens)
        self._collator = Collator(processor, room, train=False, shorten=SHORTEN)
        self._ends = end_ids(model, processor)

    def warm_up(self, sample: Sample) -> None:
        """Read the conversation and write two tokens untimed, so that seconds compare with those of another model."""
        inputs = on_device(self._model, self._collator.encode_prompts([sample]))
        with torch.inference_mode(), evaluating(self._model):
            generate_greedily(self._model, self._tokenizer, inputs, self._ends, 2)

    def answer(self, sample: Sample, on_text: Callable[[str], None] = lambda text: None) -> Answer:
        """Return the answer to a sample that ends with a question; `on_text` is given its words as they come.

        What `on_text` raises ends the answer.

        Raises:
            DataError: a picture that can't be read, a chat template that refuses the conversation, or too long a one.
            ModelError: the model computes no numbers.
        """
        begin = time.perf_counter()
        inputs = on_device(self._model, self._collator.encode_prompts([sample]))
        words = _Words(self._tokenizer, self._ends, on_text)
        asked = time.perf_counter()
        with torch.inference_mode(), evaluating(self._model), finite_logits(self._model) as check_logits:
            (tokens,) = generate_greedily(
                self._model, self._tokenizer, inputs, self._ends, self._max_new_tokens, streamer=words
            )
            check_logits()
        ids_BT = inputs["input_ids"]
        return Answer(
            text=self._tokenizer.decode(tokens, skip_special_tokens=True).strip(),
            tokens=len(tokens),
            prompt_tokens=int(ids_BT.shape[1]),
            image_tokens=int(self._anatomy.image_mask(ids_BT).sum()),
            first_token_seconds=words.first - asked,
            seconds=time.perf_counter() - begin,
        )


class _Words(TextStreamer):
    """Hands text on as it is written, without what ends it; notes when the first token was there."""

    def __init__(self, tokenizer: Any, ends: list[int], on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._ends, self._on_text = frozenset(ends), on_text
        self.first = 0.0

    def put(self, value: Tensor) -> None:
        """Take the prompt, or the next token."""
        if not self.next_tokens_are_prompt:
            self.first = self.first or time.perf_counter()
            if int(value.flatten()[0]) in self._ends:
                return
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hand on text that no later token changes."""
        if text:
            self._on_text(text)
