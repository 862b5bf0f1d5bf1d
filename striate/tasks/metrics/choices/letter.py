"""Multiple choice by the letter of a choice."""

import re
from string import ascii_uppercase

from striate.tasks.metrics.base import Metric
from striate.tasks.metrics.reading.answer_text import normalize, unformatted
from striate.tasks.packs.items import Item, Mark, Reply

BRACKETED = r"[(\[（]\s*([A-Za-z])\s*[)\]）]"
BARE = r"(?<![\w'])([A-Z])(?![\w'])"
# What follows a letter that stands for a choice: in `A dog` it is an article.
END = r"(?=[ \t]*(?:[.:),;/&\]。：，、\n]|$|(?:and|or|because|since|due)\b|[-–—]\s)|\s[-–—])"
RIGHT = r"(?=\s+is\s+(?:the\s+)?(?:most\s+)?(?:correct|right|best|answer)\b)"
WRONG = r"(?!\s+is\s+(?:not|wrong|incorrect|false)\b)"
NAMED = rf"(?:{BRACKETED}{WRONG}|{BARE}(?:{END}|{RIGHT}))"
LINE = re.compile(rf"^[ \t]*(?:{NAMED}|([a-z])(?![\w']){END})", re.MULTILINE)
OR = r"[\s.):,;/&+(、]|\b(?:and|or|maybe|perhaps|possibly|also|but|either|could be|option)\b"
ANOTHER = re.compile(rf"(?:{OR})*?{NAMED}")
ANOTHER_SMALL = re.compile(ANOTHER.pattern, re.IGNORECASE)
VERB = r"(?:\s+(?:is|was|(?:w|sh)ould be|must be)\b|\s*[:=]|\s+[-–—])*\s*"
STATED = re.compile(rf"(?i:\bans(?:wer)?\b{VERB}(?:(?:option|choice|letter)\b\s*:?\s*)?){NAMED}")
CHOOSING = r"(?:option|choice|choose|pick|select|go with)\b" + VERB + r"(?:option\s+)?"
CHOSEN = re.compile(rf"(?i:\b(?:{CHOOSING}|it(?:'s| is| must be| should be)\s+)){NAMED}")
QUOTED = re.compile(r"(['\"])([A-Za-z])\1")


def chosen(text: str, choices: tuple[str, ...]) -> int | None:
    """Return which of `choices` the answer names, or None where that can't be told.

    Markdown, quotes and reasoning in tags aside (see `unformatted`), these are read, in this order:

    - a letter at the start of a line, in brackets, alone, or before a mark or `is correct` (`A.`, `(a)`, `B: a dog`,
      `B - a dog`); where several lines have one, they repeat the choices
    - the whole text of one choice, as `normalize` compares
    - letters in the form `the answer is A`, or else `option A`, `I choose A`, `it is A`; small ones only in brackets

    Several letters, be it `A or B` or in two statements, name none; nor does a letter past the last choice.
    """
    reply = QUOTED.sub(r"\2", unformatted(text))
    stated = _letters(STATED, reply, choices)
    leading = _letters(LINE, reply, choices)
    if leading:
        return _only(stated if stated and len(leading) > 1 else leading | stated)
    named = {index for index, choice in enumerate(choices) if normalize(choice) == normalize(reply)}
    return _only(named if len(named) == 1 else stated or _letters(CHOSEN, reply, choices))


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


def _letters(form: re.Pattern[str], reply: str, choices: tuple[str, ...]) -> set[int]:
    """Return the choices (from 0) whose letters stand in `form`, with those that follow by a comma, `and` or `or`."""
    letters = []
    for found in form.finditer(reply):
        match: re.Match[str] | None = found
        while match:
            letters.append(next(filter(None, match.groups())))
            match = (ANOTHER_SMALL if letters[-1].islower() else ANOTHER).match(reply, match.end())
    places = {ascii_uppercase.index(letter.upper()) for letter in letters}
    return {place for place in places if place < len(choices)}


def _only(places: set[int]) -> int | None:
    """Return the only one of `places`, or None."""
    return next(iter(places)) if len(places) == 1 else None


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
