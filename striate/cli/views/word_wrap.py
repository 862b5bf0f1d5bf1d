"""Prose in lines of a terminal's width, broken between words."""

import re

from rich.cells import cell_len
from rich.text import Text

HANG = 2
"""How much further what goes on stands in, below a line that stands in itself."""


def between_words(text: str | Text, width: int) -> Text:
    """Return `text` in lines of at most `width` cells; a word longer than a line, as a path may be, stays whole."""
    whole = Text(text) if isinstance(text, str) else text
    lines: list[Text] = []
    for line in whole.split("\n", allow_blank=True):
        inset = len(line.plain) - len(line.plain.lstrip())
        hang = " " * (inset + HANG if inset else 0)
        first, *rest = line.divide(_breaks(line.plain, width, len(hang)))
        lines += [first, *(Text(hang) + part for part in rest)]
    for line in lines:
        line.rstrip()
    return Text("\n").join(lines)


def _breaks(line: str, width: int, hang: int) -> list[int]:
    """Return where words begin that no longer fit on the line before; later lines begin `hang` cells in."""
    breaks, begin, room = [], 0, width
    for word in re.finditer(r"\S+", line):
        before = line[begin : word.start()]
        if before.strip() and cell_len(before + word[0]) > room:
            begin, room = word.start(), width - hang
            breaks.append(begin)
    return breaks
