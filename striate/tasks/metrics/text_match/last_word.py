"""Accuracy of the next word of a passage (LAMBADA)."""

from striate.tasks.metrics.base import Metric
from striate.tasks.packs.items import Item, Mark, Reply

MARKS = ".,;:!?\"'`()[]{}<>*_-–—…“”‘’«»"


def first_word(text: str) -> str:
    """Return the first word of `text`, lower-cased, without the punctuation around it; empty if there is none."""
    words = text.split(maxsplit=1)
    return words[0].strip(MARKS).lower() if words else ""


def score_last_word(item: Item, reply: Reply) -> Mark:
    """Return 1 if the next word, decoded greedily, equals the passage's true next word, else 0.

    LAMBADA (Paperno et al. 2016, arXiv 1606.06031). Whole words are compared, ignoring case and the punctuation
    around them; a reply without a word is unparsed.
    """
    word = first_word(reply.text)
    right = bool(word) and word == first_word(item.answers[0])
    return Mark(float(right), word, unparsed=not word)


def _check(item: Item) -> str:
    return "" if first_word(item.answers[0]) else f"'continuation' {item.answers[0]!r} holds no word"


LAST_WORD = Metric(
    name="last_word",
    title="Next word",
    summary="the next word, decoded greedily, is the one that the passage has",
    function=score_last_word,
    paper="https://arxiv.org/abs/1606.06031",
    mode="next_word",
    check=_check,
)
