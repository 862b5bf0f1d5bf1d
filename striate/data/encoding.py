"""Encodes one sample: token ids with image tokens expanded by the processor, and labels of its answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from striate.data.rendering import Answer, Conversation
from striate.errors import DataError

IGNORED = -100


@dataclass(frozen=True)
class Encoded:
    """One sample: tensors aligned with its tokens (1, T, ...), and the picture tensors."""

    tokens: dict[str, torch.Tensor]
    pictures: dict[str, torch.Tensor]

    @property
    def length(self) -> int:
        """The number of tokens."""
        return self.tokens["input_ids"].shape[1]

    def owned(self) -> Encoded:
        """Return the sample with memory of its own: each tensor that a worker hands over keeps a file open."""
        return Encoded(
            *({name: value.clone() for name, value in tensors.items()} for tensors in (self.tokens, self.pictures))
        )


class SampleEncoder:
    """Encodes rendered text and pictures with one processor, whatever that processor makes of a placeholder."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self.image_token_id = _image_token_id(processor)

    def encode(self, owner: str, text: str, images: list[Image.Image]) -> Encoded:
        """Return `text` with `images` as tensors of batch size 1; `owner` is the sample id for errors.

        Raises:
            DataError: the processor refuses the pair, for example for a stray image token in the text.
        """
        pictures = {"images": [images]} if images else {}
        try:
            output = self._processor(
                text=[text], return_tensors="pt", add_special_tokens=self._adds_special_tokens(text), **pictures
            )
        except ValueError as error:
            raise DataError(
                f"sample {owner!r}: {type(self._processor).__name__} refuses it: {error}",
                "text without the model's own image tokens, and pictures that its processor can read",
                "fix or remove the sample",
            ) from error
        shape = tuple(output["input_ids"].shape)
        tensors = {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}
        aligned = {name for name, value in tensors.items() if _follows_tokens(name, value, shape)}
        return Encoded(
            {name: tensors[name] for name in tensors if name in aligned},
            {name: tensors[name] for name in tensors if name not in aligned},
        )

    def labels(
        self, owner: str, conversation: Conversation, images: list[Image.Image], encoded: Encoded
    ) -> torch.Tensor:
        """Return labels (1, T): the answers' token ids, and -100 everywhere else.

        The answers are found in the text before its placeholders are expanded, then matched with the expanded ids
        from the end; where those differ (pictures after an answer, merged tokens) prefixes are encoded instead.

        Raises:
            DataError: an answer can't be found among the tokens.
        """
        ids = encoded.tokens["input_ids"]
        chosen = self._by_offsets(conversation, ids[0].tolist())
        if chosen is None:
            chosen = [False] * encoded.length
            for answer in conversation.answers:
                first, last = self._by_prefix(owner, conversation.text, answer, images, ids[0])
                chosen[first:last] = [True] * (last - first)
        return ids.masked_fill(~torch.tensor([chosen]), IGNORED)

    def _by_offsets(self, conversation: Conversation, expanded: list[int]) -> list[bool] | None:
        """Return which expanded tokens are answers, or None if the unexpanded ones don't end them alike."""
        if not self._tokenizer.is_fast:
            return None
        plain = self._tokenizer(
            conversation.text,
            add_special_tokens=self._adds_special_tokens(conversation.text),
            return_offsets_mapping=True,
        )
        chosen = _overlapping(plain["offset_mapping"], conversation.answers)
        tail = len(chosen) - chosen.index(True) if any(chosen) else 0
        if not tail or plain["input_ids"][-tail:] != expanded[-tail:]:
            return None
        return [False] * (len(expanded) - tail) + chosen[-tail:]

    def _by_prefix(
        self, owner: str, text: str, answer: Answer, images: list[Image.Image], ids: torch.Tensor
    ) -> tuple[int, int]:
        """Return the first token of the answer and the one after its last, from the lengths of encoded prefixes."""
        shown = images[: answer.images]
        first, last = (
            _common_length(self.encode(owner, text[:end], shown).tokens["input_ids"][0], ids)
            for end in (answer.start, answer.end)
        )
        if first < last:
            return first, last
        raise DataError(
            f"sample {owner!r}: can't tell which tokens are its answers",
            "a processor that encodes the start of a text as the start of its tokens",
            "split the sample into single turns with the pictures first",
        )

    def _adds_special_tokens(self, text: str) -> bool:
        """Return whether the tokenizer should add its own first token: not if the template wrote it."""
        first = self._tokenizer.bos_token
        return not (first and text.startswith(first))


def _image_token_id(processor: Any) -> int | None:
    """Return the id of the token that stands for one image token; None if the processor names none."""
    # Gemma 3's processor names the start-of-image token; its tokenizer names the token that is repeated.
    for owner in (processor.tokenizer, processor):
        value = getattr(owner, "image_token_id", None)
        if isinstance(value, int):
            return value
    token = getattr(processor, "image_token", None)
    return processor.tokenizer.convert_tokens_to_ids(token) if isinstance(token, str) else None


def _follows_tokens(name: str, value: torch.Tensor, shape: tuple[int, ...]) -> bool:
    """Return whether the tensor has one entry a token."""
    return not name.startswith(("pixel", "image")) and tuple(value.shape[:2]) == shape


def _overlapping(offsets: list[tuple[int, int]], answers: tuple[Answer, ...]) -> list[bool]:
    return [any(start < answer.end and end > answer.start for answer in answers) for start, end in offsets]


def _common_length(prefix: torch.Tensor, ids: torch.Tensor) -> int:
    size = min(len(prefix), len(ids))
    differ = (prefix[:size] != ids[:size]).nonzero()
    return int(differ[0]) if len(differ) else size
