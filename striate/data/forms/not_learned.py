"""Answers that are not to be learned, or not without what stands beside them and is not read. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from striate.data.rows import Row
from striate.printable import shown

# Of OpenAI, ms-swift and axolotl: 0 or false at an answer.
MARKS = frozenset({"weight", "loss", "train", "training"})
# Beside an answer, what a model says with it.
SAID = ("reasoning_content", "thinking", "tool_calls", "function_call")
# Of a record: what its answers call, and the answers of preference data that are worse than those of the conversation.
BESIDE = ("tools", "functions", "rejected_response", "rejected_messages")
_CHOICES = ("choices", "options")
_LETTER = re.compile(r"\(?[A-Za-z]\)?\.?")


def refuse_marked(turn: Mapping[Any, Any], row: Row) -> None:
    """Raise if an answer is marked as one that is not learned: all answers of a sample are.

    Raises:
        StriateError: the row's, if it is.
    """
    key = next((key for key in MARKS.intersection(turn) if _is_off(turn[key])), None)
    if key is not None:
        raise row.refuse(
            f"{key!r} is {turn[key]}, so that this answer is not to be learned",
            "samples of which every answer is learned",
            f"remove the sample, or {key!r} to learn the answer",
        )


def refuse_said(turn: Mapping[Any, Any], row: Row) -> None:
    """Raise if an answer has thoughts or calls in a field of their own: the answer would be learned without them.

    Raises:
        StriateError: the row's, if it has.
    """
    key = next((key for key in SAID if turn.get(key)), None)
    if key is not None:
        raise row.refuse(
            f"its {key!r} is not read, so that the answer would be learned without it",
            "answers whose text is all that is learned",
            f"write it into the text, in the model's own form, or remove {key!r} to learn the text alone",
        )


def refuse_beside(row: Row) -> None:
    """Raise if a record has tools, or worse answers beside those of its conversation.

    Raises:
        StriateError: the row's, if it has.
    """
    key = next((key for key in BESIDE if row.fields.get(key)), None)
    if key is not None:
        raise row.refuse(
            f"it has {key!r}, which is not read",
            "conversations whose answers are learned as they stand",
            f"remove {key!r} to learn them without it, or the sample",
        )


def refuse_undesired(row: Row) -> None:
    """Raise if a completion is one that people did not want, as TRL's data for KTO has them.

    Raises:
        StriateError: the row's, if it is.
    """
    if row.fields.get("label") is False:
        raise row.refuse(
            "'label' is False, so that its completion is not to be learned",
            "samples of which the answer is learned",
            "remove the samples of which 'label' is false, or the field to learn all",
        )


def refuse_index(row: Row) -> None:
    """Raise if the answer is the number or the letter of a choice, and the question does not show the choices.

    Raises:
        StriateError: the row's, if it is.
    """
    key = next((key for key in _CHOICES if isinstance(row.fields.get(key), list) and row.fields[key]), None)
    question, answer = row.fields.get("question"), row.fields.get("answer")
    if key is None or not isinstance(question, str):
        return
    chosen = type(answer) is int or (isinstance(answer, str) and _LETTER.fullmatch(answer.strip()) is not None)
    if chosen and answer not in row.fields[key] and not any(str(one) in question for one in row.fields[key]):
        raise row.refuse(
            f"its answer {shown(answer)} stands for one of {key!r}, which the question does not show",
            "an answer as it is to be said, or a question that shows its choices",
            f"write the choice as the answer, or {key!r} into the question; data.columns={{answer: answer}} learns"
            f" {shown(answer)} as it stands",
        )


def _is_off(value: Any) -> bool:
    return isinstance(value, bool | int | float) and not value
