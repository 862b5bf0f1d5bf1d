"""Exact match of a generated answer."""

from striate.tasks.metrics.base import Metric
from striate.tasks.metrics.reading.answer_text import normalize
from striate.tasks.packs.items import Item, Mark, Reply


def score_exact(item: Item, reply: Reply) -> Mark:
    """Return 1 if the answer equals one of the accepted answers after `normalize`, else 0.

    The exact match of Rajpurkar et al. 2016 (arXiv 1606.05250, section 6.1), with a lighter normalising: articles and
    inner punctuation stay. An answer that is empty after normalising is unparsed.
    """
    answer = normalize(reply.text)
    right = bool(answer) and answer in {normalize(accepted) for accepted in item.answers}
    return Mark(float(right), reply.text.strip(), unparsed=not answer)


EXACT = Metric(
    name="exact",
    title="Exact match",
    summary="the generated answer equals an accepted one, ignoring case and a final full stop",
    function=score_exact,
    paper="https://arxiv.org/abs/1606.05250",
)
