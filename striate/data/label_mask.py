"""The label mask: which tokens of a conversation are learned, those of its answers alone."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from striate.data.chat_template.rendering import Answer, Conversation
from striate.data.encoding import Encoded, SampleEncoder
from striate.errors import DataError

IGNORED = -100


class LabelMask:
    """Finds the answers of a conversation among its tokens."""

    def __init__(self, encoder: SampleEncoder) -> None:
        self._encoder = encoder

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
        if not self._encoder.tokenizer.is_fast:
            return None
        plain = self._encoder.tokenizer(
            conversation.text,
            add_special_tokens=self._encoder.adds_special_tokens(conversation.text),
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
            _common_length(self._encoder.encode(owner, text[:end], shown).tokens["input_ids"][0], ids)
            for end in (answer.start, answer.end)
        )
        if first < last:
            return first, last
        raise DataError(
            f"sample {owner!r}: can't tell which tokens are its answers",
            "a processor that encodes the start of a text as the start of its tokens",
            "split the sample into single turns with the pictures first",
        )


def _overlapping(offsets: list[tuple[int, int]], answers: tuple[Answer, ...]) -> list[bool]:
    """Return which tokens, of which the first and the last character is given, have characters of an answer."""
    starts_T, ends_T = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    chosen_T = np.zeros(len(starts_T), dtype=bool)
    for answer in answers:
        chosen_T |= (starts_T < answer.end) & (ends_T > answer.start)
    found: list[bool] = chosen_T.tolist()
    return found


def _common_length(prefix: torch.Tensor, ids: torch.Tensor) -> int:
    size = min(len(prefix), len(ids))
    differ = (prefix[:size] != ids[:size]).nonzero()
    return int(differ[0]) if len(differ) else size
