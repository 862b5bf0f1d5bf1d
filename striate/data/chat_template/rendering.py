"""Renders conversations with the chat template, and locates the answers in the text."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from striate.data.chat_template.template_limits import bounded_time, check_template
from striate.data.samples import Message, Sample
from striate.errors import DataError, ModelError, first_line

_STAND_IN = "\uf8a1"


@dataclass(frozen=True)
class Answer:
    """The characters `start` to `end` of one answer with its end-of-turn token; `images` pictures stand before it."""

    start: int
    end: int
    images: int


@dataclass(frozen=True)
class Conversation:
    """A rendered conversation: its text, one placeholder a picture, and where the answers are."""

    text: str
    answers: tuple[Answer, ...]


class Renderer:
    """Renders samples with the chat template of one processor."""

    def __init__(self, processor: Any) -> None:
        """Take the template and the special tokens of `processor`.

        Raises:
            ModelError: the processor has no chat template, or one that takes too long or too much.
        """
        self._processor = processor
        self._template = getattr(processor, "chat_template", None) or processor.tokenizer.chat_template
        if not self._template:
            raise ModelError(
                f"{type(processor).__name__} has no chat template",
                "a processor whose chat template renders conversations with pictures",
                "set processor.chat_template and save the processor with the model",
            )
        if isinstance(self._template, str):
            check_template(self._template)
        self._eos = processor.tokenizer.eos_token or ""
        self._end_of_turn = _end_of_turn(processor)

    @bounded_time()
    def prompt(self, sample: Sample) -> str:
        """Return the text up to where the model speaks: the sample without its last answer, and the answer's header.

        Raises:
            ModelError: the template takes too long.
        """
        return self._render(sample.prompt(), generation=True)

    @bounded_time()
    def conversation(self, sample: Sample) -> Conversation:
        """Return the whole conversation and the places of its answers.

        Where the template writes no end-of-turn token after an answer, the tokenizer's end-of-sequence token is put
        there: without one the model would never learn to stop.

        Raises:
            DataError: the template does not render an answer as it stands in the sample.
            ModelError: it takes too long.
        """
        text = self._render(sample)
        result, copied, shown = "", 0, 0
        answers: list[Answer] = []
        for index, message in enumerate(sample.messages):
            shown += message.images
            if message.role != "assistant":
                continue
            start, words_end = self._locate(sample, index, text)
            stop = self._end_of_turn.match(text, words_end)
            end = stop.end() if stop else words_end
            start += len(result) - copied
            result += text[copied:end] + ("" if stop else self._eos)
            copied = end
            answers.append(Answer(start, len(result), shown))
        return Conversation(result + text[copied:], tuple(answers))

    def _locate(self, sample: Sample, index: int, text: str) -> tuple[int, int]:
        """Return where in `text` the model begins to speak turn `index`, and where that turn's words end.

        What a template writes before the words and not in its generation prompt, such as an empty `<think>` block, the
        model must write itself: it is learned.
        """
        header = self._render(replace(sample, messages=sample.messages[:index]), generation=True)
        start = _shared_length(text, header)
        words = sample.messages[index].text.strip()
        rest = text[start:].lstrip()
        if rest.startswith(words) and not self._adds_words:
            return start, len(text) - len(rest) + len(words)
        # The words may stand in what the template adds as well, or begin as the rest of the header does.
        words_start = self._place_of_words(sample, index, text)
        start = min(start, words_start)
        if words_start < 0 or (not text.startswith(header) and text[start:words_start].strip()):
            raise DataError(
                f"sample {sample.id!r}: the model's chat template changes or drops the answer {words!r:.60}",
                "a chat template that keeps every turn as it is",
                "split the sample into single turns, or use another chat template",
            )
        return start, words_start + len(words)

    def _place_of_words(self, sample: Sample, index: int, text: str) -> int:
        """Return where in `text` the words of turn `index` begin, found with others in their place; -1 if nowhere."""
        before, message, after = sample.messages[:index], sample.messages[index], sample.messages[index + 1 :]
        words = message.text.strip()
        turn = replace(message, text=message.text.replace(words, _STAND_IN, 1))
        other = self._render(replace(sample, messages=(*before, turn, *after)))
        place = other.find(_STAND_IN)
        same = place >= 0 and text == other[:place] + words + other[place + len(_STAND_IN) :]
        return place if same else -1

    @cached_property
    def _adds_words(self) -> bool:
        """Whether the template writes more than white space between its generation prompt and an answer."""
        turns = (Message("user", "Q"), Message("assistant", _STAND_IN))
        try:
            text = self._render(Sample("", turns * 2))
            headers = [self._render(Sample("", (turns * 2)[:index]), generation=True) for index in (1, 3)]
        # It refuses these turns, and what it does to others is seen at each.
        except DataError:
            return False
        starts = [_shared_length(text, header) for header in headers]
        places = [found.start() for found in re.finditer(_STAND_IN, text)]
        return any(text[start:place].strip() for start, place in zip(starts, places, strict=False))

    def _render(self, sample: Sample, generation: bool = False) -> str:
        try:
            return self._processor.apply_chat_template(
                sample.chat(), chat_template=self._template, add_generation_prompt=generation, tokenize=False
            )
        except MemoryError:
            raise
        except Exception as error:  # A template is a program of the model's authors.
            raise DataError(
                f"sample {sample.id!r}: the model's chat template refuses it: {first_line(error)}",
                "roles, turns and pictures that the chat template knows",
                "change the sample, or put another chat template beside the model's processor",
            ) from error


def _shared_length(text: str, other: str) -> int:
    # Nearly always so, and found at once.
    if text.startswith(other):
        return len(other)
    pairs = enumerate(zip(text, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(text), len(other)))


def _end_of_turn(processor: Any) -> re.Pattern[str]:
    """Return a pattern of the special tokens that may end a turn: all but the picture's and the first-token one."""
    tokenizer = processor.tokenizer
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= set(tokenizer.all_special_tokens)
    special -= {getattr(processor, "image_token", None), tokenizer.bos_token} - {tokenizer.eos_token}
    words = sorted(map(re.escape, special), key=len, reverse=True)
    return re.compile(rf"\s*(?:{'|'.join(words)})") if words else re.compile(r"(?!)")
