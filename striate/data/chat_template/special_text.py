"""Special tokens written in data, such as `</s>` in an answer: they are text, and reach the model as tokens of text."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from striate.data.encoding import Encoded, SampleEncoder
from striate.data.samples import PLACEHOLDER, Sample
from striate.errors import DataError, first_line
from striate.printable import shown

# A special token is written as the first of these characters and four of the others, its number in base 16.
_MARKS = tuple(map(chr, range(0xF5700, 0xF5711)))
_MARK, *_DIGITS = _MARKS
_WIDTH = 4


@dataclass(frozen=True)
class _Marked:
    """An encoder that has a token for every mark, the ids of those, and the tokenizer that writes words as text."""

    encoder: SampleEncoder
    ids: tuple[int, ...]
    plain: Any


class SpecialText:
    """Marks the special tokens in a sample's words before the chat template adds its own, and puts them back as text.

    Samples without any pass through as they are.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._words = (*_MARKS, *special_words(processor))
        words = sorted(map(re.escape, self._words), key=len, reverse=True)
        self._pattern = re.compile("|".join(words))
        self._texts: dict[str, tuple[int, ...]] = {}

    def marked(self, sample: Sample) -> Sample:
        """Return `sample` with marks for the special tokens in its words; its picture placeholders stay.

        Raises:
            DataError: the words hold some, and the tokenizer can't take them as text.
        """
        found = {word for message in sample.messages for word in self._pattern.findall(message.text)}
        if not found:
            return sample
        for word in found - self._texts.keys():
            try:
                self._texts[word] = self._as_text(word)
            except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
                raise _refused(sample.id, word, first_line(error)) from error
        messages = (
            replace(message, text=PLACEHOLDER.join(map(self._mark, message.text.split(PLACEHOLDER))))
            for message in sample.messages
        )
        return replace(sample, messages=tuple(messages))

    def encoder(self, text: str) -> SampleEncoder | None:
        """Return the encoder that reads the marks in `text`; None where it has none."""
        return self._copy.encoder if _MARK in text else None

    def restored(self, owner: str, text: str, encoded: Encoded) -> Encoded:
        """Return `encoded`, made from `text` with marks, with tokens of the words themselves in their place.

        Raises:
            DataError: the processor of sample `owner` did not keep the marks.
        """
        if _MARK not in text:
            return encoded
        ids: list[int] = []
        places: list[int] = []
        old = encoded.tokens["input_ids"][0].tolist()
        if old.count(self._copy.ids[0]) != text.count(_MARK):
            raise _refused(owner, "one", f"{type(self._processor).__name__} changes it")
        for place, token in enumerate(old):
            new = self._text_at(old, place) if token in self._copy.ids else (token,)
            ids += new
            places += [place] * len(new)
        tokens = {name: value[:, places] for name, value in encoded.tokens.items()}
        tokens["input_ids"] = torch.tensor([ids])
        if "labels" in tokens:
            tokens["labels"] = tokens["input_ids"].where(tokens["labels"] >= 0, tokens["labels"])
        return Encoded(tokens, encoded.pictures)

    def _text_at(self, tokens: list[int], place: int) -> tuple[int, ...]:
        """Return the text tokens of the special token whose mark stands at `place`; none at the digits that follow."""
        mark, *digits = self._copy.ids
        if tokens[place] != mark:
            return ()
        number = "".join(f"{digits.index(token):x}" for token in tokens[place + 1 : place + 1 + _WIDTH])
        return self._texts[self._words[int(number, 16)]]

    def _as_text(self, word: str) -> tuple[int, ...]:
        """Return the ids of `word` as it stands within a text, none of them a special token's but that of unknown text.

        Raises:
            ValueError: the tokenizer knows no other way to write it.
        """
        tokenizer = self._copy.plain
        control = {*self._words[len(_MARKS) :]} - {tokenizer.unk_token} | {tokenizer.eos_token, tokenizer.bos_token}
        ids = set(tokenizer.convert_tokens_to_ids([word for word in control if word]))
        for pieces in ([word], list(word)):
            text = tuple(token for piece in pieces for token in _within_text(tokenizer, piece))
            if text and not ids & set(text):
                return text
        raise ValueError(f"{type(tokenizer).__name__} has no tokens of text for it")

    def _mark(self, text: str) -> str:
        def marks(word: re.Match[str]) -> str:
            number = f"{self._words.index(word[0]):0{_WIDTH}x}"
            return _MARK + "".join(_DIGITS[int(digit, 16)] for digit in number)

        return self._pattern.sub(marks, text)

    @cached_property
    def _copy(self) -> _Marked:
        from transformers import AddedToken

        # Copies: whether special tokens are text is a setting of the backend, and other threads encode meanwhile.
        plain, tokenizer = copy.deepcopy(self._processor.tokenizer), copy.deepcopy(self._processor.tokenizer)
        tokenizer.add_tokens([AddedToken(mark, normalized=False, special=True) for mark in _MARKS])
        processor = copy.copy(self._processor)
        processor.tokenizer = tokenizer
        return _Marked(SampleEncoder(processor), tuple(tokenizer.convert_tokens_to_ids(list(_MARKS))), plain)


def special_words(processor: Any) -> tuple[str, ...]:
    """Return the texts that the tokenizer or the processor reads as special tokens; `<image>` is striate's own word.

    Single characters are left out: some tokenizers pad with `!`, which is a token of text as well.
    """
    tokenizer = processor.tokenizer
    own = {word for name, word in vars(processor).items() if name.endswith("_token") and isinstance(word, str)}
    words = own | {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    words |= set(tokenizer.all_special_tokens)
    return tuple(sorted(word for word in words if len(word.strip()) > 1 and word != PLACEHOLDER))


def _within_text(tokenizer: Any, word: str) -> list[int]:
    """Return the ids of `word` behind a line break, where no tokenizer puts a space before it."""
    before, whole, alone = (
        tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        for text in ("\n", f"\n{word}", word)
    )
    return whole[len(before) :] if whole[: len(before)] == before else alone


def _refused(owner: str, word: str, reason: str) -> DataError:
    return DataError(
        f"sample {owner!r} holds a special token of the model, {shown(word)}, which can't be kept as text: {reason}",
        "words that are none of the tokenizer's special tokens",
        "write it otherwise, or remove the sample",
    )
