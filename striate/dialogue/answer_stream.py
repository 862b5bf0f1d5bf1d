"""An answer as an iterator of its words, for a page that waits for them; the model runs in a thread meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue
from threading import Event, Thread

from striate.data.samples import Sample
from striate.dialogue.answering import Answer, Answerer


class _LeftError(Exception):
    """Nobody waits for the answer any more."""


def answer_stream(answerer: Answerer, sample: Sample) -> Iterator[str | Answer]:
    """Yield the words of an answer as they come, and the whole answer last.

    An iterator that is closed ends the answer at its next word; what the model raises is raised here.
    """
    pieces: SimpleQueue[str | Answer | BaseException] = SimpleQueue()
    left = Event()

    def on_text(text: str) -> None:
        if left.is_set():
            raise _LeftError
        pieces.put(text)

    def work() -> None:
        try:
            pieces.put(answerer.answer(sample, on_text))
        except BaseException as error:
            pieces.put(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            piece = pieces.get()
            if isinstance(piece, BaseException):
                raise piece
            yield piece
            if isinstance(piece, Answer):
                return
    finally:
        left.set()
        thread.join()
