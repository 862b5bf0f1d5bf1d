"""Exact match of an answer's first line."""

from striate.tasks.metrics.base import Metric
from striate.tasks.metrics.reading.answer_text import normalize
from striate.tasks.packs.items import Item, Mark, Reply


def score_first_line(item: Item, reply: Reply) -> Mark:
    """Return 1 if the reply's first line equals an accepted answer after `normalize`, else 0.

    For prompts with worked examples, which models like to continue with examples of their own: BIG-Bench Hard's direct
    answers (Suzgun et al. 2022, arXiv 2210.09261) are read up to there. An empty line is unparsed.
    """
    line = reply.text.strip().partition("\n")[0].strip()
    answer = normalize(line)
    right = bool(answer) and answer in {normalize(accepted) for accepted in item.answers}
    return Mark(float(right), line, unparsed=not answer)


FIRST_LINE = Metric(
    name="first_line",
    title="First line",
    summary="the answer's first line equals an accepted answer, ignoring case and a final full stop",
    function=score_first_line,
    paper="https://arxiv.org/abs/2210.09261",
)
