"""Exact match after the VQA evaluation's normalization."""

from striate.tasks.metrics.base import Metric
from striate.tasks.metrics.reading.answer_text import vqa_text
from striate.tasks.packs.items import Item, Mark, Reply


def score_normalized(item: Item, reply: Reply) -> Mark:
    """Return 1 if the answer equals an accepted one after `vqa_text`, else 0.

    The clean-up is that of VQA (Antol et al. 2015, arXiv 1505.00468): `The two dogs.` is `2 dogs`. An answer of which
    nothing is left (an article, punctuation) is unparsed.
    """
    answer = vqa_text(reply.text)
    right = bool(answer) and answer in {vqa_text(accepted) for accepted in item.answers}
    return Mark(float(right), reply.text.strip(), unparsed=not answer)


NORMALIZED = Metric(
    name="normalised",
    title="Normalised match",
    summary="the answer equals an accepted one, ignoring articles, punctuation, number words and contractions",
    function=score_normalized,
    paper="https://arxiv.org/abs/1505.00468",
)
