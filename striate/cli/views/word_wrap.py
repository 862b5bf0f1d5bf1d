"""Prose in lines of a terminal's width, broken between words."""

import re

from rich.cells import cell_len
from rich.text import Text


def between_words(text: str | Text, width: int) -> Text:
    """Return `text` in lines of at most `width` cells; a word longer than a line, as a path may be, stays whole."""
    whole = Text(text) if isinstance(text, str) else text
    lines = [part for line in whole.split("\n", allow_blank=True) for part in line.divide(_breaks(line.plain, width))]
    for line in lines:
        line.rstrip()
    return Text("\n").join(lines)


def _breaks(line: str, width: int) -> list[int]:
    """Return where words begin that no longer fit on the line before."""
    breaks, begin = [], 0
    for word in re.finditer(r"\S+", line):
        before = line[begin : word.start()]
        if before.strip() and cell_len(before + word[0]) > width:
            begin = word.start()
            breaks.append(begin)
    return breaks
