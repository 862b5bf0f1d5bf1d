"""Two-way containment, as OCRVQA is scored."""

from striate.tasks.metrics.base import Metric
from striate.tasks.metrics.reading.answer_text import normalize
from striate.tasks.packs.items import Item, Mark, Reply


def score_containment(item: Item, reply: Reply) -> Mark:
    """Return 1 if the answer contains an accepted one or lies within one, ignoring case, else 0.

    The measure of the visual-region paper's released OCRVQA evaluation (arXiv 2412.12785; data: Mishra et al. 2019).
    It is generous: one letter lies within most titles. An empty answer, which lies within anything, is unparsed.
    """
    answer = normalize(reply.text)
    accepted = [normalize(text) for text in item.answers]
    right = bool(answer) and any(answer in text or text in answer for text in accepted if text)
    return Mark(float(right), reply.text.strip(), unparsed=not answer)


CONTAINMENT = Metric(
    name="containment",
    title="Two-way containment",
    summary="the answer contains an accepted one, or lies within one, ignoring case",
    function=score_containment,
    paper="https://arxiv.org/abs/2412.12785",
)
