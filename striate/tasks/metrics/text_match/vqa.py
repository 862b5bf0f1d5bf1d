"""VQA soft accuracy: how many of ten people gave this answer."""

from collections.abc import Sequence

from striate.tasks.metrics.base import Metric
from striate.tasks.metrics.reading.answer_text import vqa_text
from striate.tasks.packs.items import Item, Mark, Reply

PEOPLE = 10
ENOUGH = 3


def soft_accuracy(answer: str, answers: Sequence[str]) -> float:
    """Return the mean over every set of n - 1 of the n `given` answers of min(matches in the set / 3, 1)."""
    matches = [other == answer for other in answers]
    total = sum(matches)
    return sum(min((total - match) / ENOUGH, 1.0) for match in matches) / len(matches)


def score_vqa(item: Item, reply: Reply) -> Mark:
    """Return the soft accuracy of the answer against the ten people's answers, after `vqa_text`.

    An answer is right if at least three of ten people gave it, averaged over all sets of nine people (Antol et al.
    2015, arXiv 1505.00468, section 5; Goyal et al. 2017, arXiv 1612.00837; visualqa.org/evaluation.html). So 0, 1, 2, 3
    and 4 matches score 0, 0.3, 0.6, 0.9 and 1. An answer of which nothing is left is unparsed.
    """
    answer = vqa_text(reply.text)
    score = soft_accuracy(answer, [vqa_text(accepted) for accepted in item.answers]) if answer else 0.0
    return Mark(score, reply.text.strip(), unparsed=not answer)


def _check(item: Item) -> str:
    count = len(item.answers)
    return "" if count == PEOPLE else f"'answers' has {count} entries, but VQA accuracy needs ten people's answers"


VQA = Metric(
    name="vqa",
    title="VQA accuracy",
    summary="min(people who gave this answer / 3, 1), averaged over all sets of nine of ten people",
    function=score_vqa,
    paper="https://arxiv.org/abs/1612.00837",
    check=_check,
)
