"""Exact match of the final answer of a chain of thought."""

import re

from striate.tasks.metrics.base import Metric
from striate.tasks.metrics.reading.answer_text import normalize
from striate.tasks.packs.items import Item, Mark, Reply

PHRASE = re.compile(r"\banswer is:?[ \t]*", re.IGNORECASE)


def score_final_answer(item: Item, reply: Reply) -> Mark:
    """Return 1 if what follows the last `answer is` equals an accepted answer after `normalize`, else 0.

    As BIG-Bench Hard scores step-by-step answers (Suzgun et al. 2022, arXiv 2210.09261; Wei et al. 2022, arXiv
    2201.11903). The answer ends with its line; Markdown's `**` is no part of it. A reply without those words is
    unparsed: often it was cut off, so `evaluate.max_new_tokens` wants to be some hundreds.
    """
    pieces = PHRASE.split(reply.text)
    answer = normalize(pieces[-1].partition("\n")[0].replace("**", "")) if len(pieces) > 1 else ""
    right = bool(answer) and answer in {normalize(accepted) for accepted in item.answers}
    return Mark(float(right), answer or reply.text.strip(), unparsed=not answer)


FINAL_ANSWER = Metric(
    name="final_answer",
    title="Final answer",
    summary="what follows the last 'answer is' equals an accepted answer, ignoring case",
    function=score_final_answer,
    paper="https://arxiv.org/abs/2210.09261",
)
