"""Asks what may never answer, a server say, and waits for seconds only."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

SECONDS = 3.5
"""The most that is waited for a server's first answer."""

ValueT = TypeVar("ValueT")


class NoAnswerError(Exception):
    """A server did not answer in time, or can't be reached."""


def within(seconds: float, ask: Callable[[], ValueT], whom: str) -> ValueT:
    """Return what `ask` returns, or raise what it raises; `whom` names for people who is asked.

    A limit of `ask`'s own is to be longer: of two that end at once, chance would choose whose error is told.

    Raises:
        NoAnswerError: it took longer: looking up a name, say, can't be given a limit of its own.
    """
    answers: list[Any] = []
    faults: list[BaseException] = []

    def work() -> None:
        try:
            answers.append(ask())
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if faults:
        raise faults[0]
    if not answers:
        raise NoAnswerError(f"{whom} did not answer within {seconds:g} s")
    found: ValueT = answers[0]
    return found
