"""Text of others as Markdown shows it, and no more."""

from __future__ import annotations

import re

from striate.printable import printable


def on_one_line(text: str) -> str:
    """Return `text` without line breaks: a line of dashes would end the metadata."""
    return " ".join(printable(text).split())


def code_span(text: str) -> str:
    """Return `text` for a code span."""
    return on_one_line(text).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def plain(text: str) -> str:
    """Return `text` as Markdown that shows it and no more: no element, no link and no picture."""
    return re.sub(r"([\[\]])", r"\\\1", code_span(text))
