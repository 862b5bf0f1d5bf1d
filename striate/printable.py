"""Text from files, made fit to be shown: no control characters, no hidden direction changes, never too long."""

import re
import reprlib
import unicodedata
from typing import Any

LONGEST_LINE = 300
LONGEST_VALUE = 80
LONGEST_WORD = 140
_LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")
_JOINERS = "\u200c\u200d"  # Persian, Indic scripts and emoji are written with these two.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    """Return `text` with every character that a terminal obeys or hides written as `repr` escapes it.

    Line feeds and tabs stay. What is escaped already stays as it is: twice is the same as once.
    """
    if text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def clipped(text: str, longest: int = LONGEST_LINE) -> str:
    """Return `text` in at most `longest` characters: long words lose their middles first, and then the whole does."""
    if len(text) <= longest:
        return text
    words = _LONG_WORD.sub(lambda word: _without_middle(word[0], LONGEST_WORD), text)
    return _without_middle(words, longest)


def _without_middle(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    tail = longest // 3
    return f"{text[: longest - tail - 1]}…{text[len(text) - tail :]}"


def shown(value: Any, longest: int = LONGEST_VALUE) -> str:
    """Return the `repr` of any value from a file for an error: on one line, printable, and shortened in its middle."""
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = longest
    brief.maxlevel = 3
    try:
        return _without_middle(printable(repr(value) if isinstance(value, str) else brief.repr(value)), longest)
    except (ValueError, RecursionError):
        # Numbers of thousands of digits have no repr.
        return f"a very large {type(value).__name__}"


def _visible(character: str) -> str:
    if character in "\n\t" or character in _JOINERS or unicodedata.category(character) not in _HIDDEN:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
