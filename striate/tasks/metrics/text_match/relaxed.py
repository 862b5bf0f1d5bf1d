"""Relaxed accuracy of numbers, for charts."""

import math
import re

from striate.tasks.metrics.base import Metric
from striate.tasks.packs.items import Item, Mark, Reply

TOLERANCE = 0.05
ROUNDING = 1e-12
NUMBER = re.compile(r"([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:e[-+]?\d+)?)( ?%)?", re.IGNORECASE)


def number_of(text: str) -> float | None:
    """Return the number that the whole of `text` is, or None; `5%` is 0.05, `1,200` is 1200; 1e999 is none."""
    match = NUMBER.fullmatch(text.strip().removesuffix(".").strip())
    if match is None or not any(letter.isdigit() for letter in match[1]):
        return None
    try:
        value = float(match[1].replace(",", ""))
    except ValueError:
        return None
    if not math.isfinite(value):
        return None
    return value / 100 if match[2] else value


def agrees(answer: str, accepted: str) -> bool:
    """Return whether `answer` is within 5% of the number `accepted`, or is the same text where that is no number."""
    given, true = number_of(answer), number_of(accepted)
    if given is None or true is None:
        return answer.strip().lower() == accepted.strip().lower()
    return abs(given - true) <= TOLERANCE * abs(true) + ROUNDING * abs(true)


def score_relaxed(item: Item, reply: Reply) -> Mark:
    """Return 1 if the answer is within 5% of an accepted number, or equals an accepted text, else 0.

    Relaxed accuracy of ChartQA (Masry et al. 2022, arXiv 2203.10244, section 4.1; Methani et al. 2020, arXiv
    1909.00997): the error is relative to the true number, so a true 0 allows no other. Text is compared ignoring case.
    An empty answer, or one that is no number where only numbers are accepted, is unparsed.
    """
    answer = reply.text.strip()
    right = bool(answer) and any(agrees(answer, accepted) for accepted in item.answers)
    numeric = all(number_of(accepted) is not None for accepted in item.answers)
    return Mark(float(right), answer, unparsed=not right and (not answer or (numeric and number_of(answer) is None)))


RELAXED = Metric(
    name="relaxed",
    title="Relaxed accuracy",
    summary="a number within 5% of an accepted one; other answers must be equal, ignoring case",
    function=score_relaxed,
    paper="https://arxiv.org/abs/2203.10244",
)
