"""Answers of several models to one question, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table

from striate.wording import amount

if TYPE_CHECKING:
    from striate.dialogue.answering import Answer


def answer_table(answers: Mapping[str, Answer]) -> Table:
    """Return a column a model: its answer, and below it how long that took."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 1, 0))
    for label in answers:
        table.add_column(label, ratio=1, overflow="fold")
    table.add_row(*(answer.text or "(nothing)" for answer in answers.values()))
    table.add_row(
        *(f"{answer.seconds:.2f} s, {amount(answer.tokens, 'token')}" for answer in answers.values()), style="dim"
    )
    return table


def facts_line(answer: Answer) -> str:
    """Return in words what an answer took: seconds, tokens written, tokens read."""
    pictures = f", {answer.image_tokens} of them image tokens" if answer.image_tokens else ""
    return (
        f"{answer.seconds:.2f} s, {answer.first_token_seconds:.2f} s to the first token;"
        f" {amount(answer.tokens, 'token')} written after {answer.prompt_tokens} read{pictures}"
    )
