"""Multiple choice by the letter of a choice."""

import re
from string import ascii_uppercase

from striate.tasks.metrics.base import Metric
from striate.tasks.metrics.reading.answer_text import normalize
from striate.tasks.packs.items import Item, Mark, Reply

LETTER_FIRST = re.compile(r"\s*(?:\(([A-Za-z])\)|([A-Za-z])(?=[.:),]|\s*$))")
STATED = re.compile(r"(?i:\b(?:answer|option|choice)(?: is|:)*)\s*(?:\(([A-Za-z])\)|([A-Z])\b)")


def chosen(text: str, choices: tuple[str, ...]) -> int | None:
    """Return which of `choices` the answer names, or None where that can't be told.

    Read in this order: a letter at the start, alone or followed by one of `. : ) ,` (`A`, `A.`, `(a)`, `B: a dog`);
    the whole text of one choice, as `normalize` compares; one and only one letter in the form `the answer is A` (a
    small letter only in brackets: `the answer is a dog` names none). A letter past the last choice is no answer.
    """
    match = LETTER_FIRST.match(text)
    if match is not None:
        return _place(match[1] or match[2], len(choices))
    named = [index for index, choice in enumerate(choices) if normalize(choice) == normalize(text)]
    if len(named) == 1:
        return named[0]
    stated = {(bracketed or bare).upper() for bracketed, bare in STATED.findall(text)}
    return _place(stated.pop(), len(choices)) if len(stated) == 1 else None


def score_letter(item: Item, reply: Reply) -> Mark:
    """Return 1 if the answer names the right choice by letter (or by its whole text), else 0; see `chosen`.

    The choice is read as in ScienceQA (Lu et al. 2022, arXiv 2209.09513, section 5) and LLaVA-1.5 (Liu et al. 2023,
    arXiv 2310.03744): letters first, then `The answer is A`. Nothing is guessed: an answer that names no choice, or
    several, scores 0 and is unparsed.
    """
    place = chosen(reply.text, item.choices)
    return Mark(float(place is not None and place == item.answer_index), reply.text.strip(), unparsed=place is None)


def options_of(choices: tuple[str, ...]) -> str:
    """Return the choices on lines of their own, each after its letter: `A. a dog`."""
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False))


def _place(letter: str, count: int) -> int | None:
    """Return the number (from 0) of the choice with that letter, or None past the last of `count`."""
    place = ascii_uppercase.index(letter.upper())
    return place if place < count else None


def _check(item: Item) -> str:
    if not 2 <= len(item.choices) <= len(ascii_uppercase):
        return f"'choices' has {len(item.choices)} entries, but must have 2 to {len(ascii_uppercase)}"
    if item.answer_index is None or not 0 <= item.answer_index < len(item.choices):
        return f"'answer_index' is {item.answer_index}, but must be 0 to {len(item.choices) - 1}"
    return ""


LETTER = Metric(
    name="letter",
    title="Choice by letter",
    summary="the answer names the right choice by its letter, or by its whole text; nothing is guessed",
    function=score_letter,
    paper="https://arxiv.org/abs/2209.09513",
    check=_check,
)
