"""Multiple choice by likelihood: no answer is generated."""

from striate.tasks.metrics.base import Metric
from striate.tasks.packs.items import Item, Mark, Reply


def ranking(item: Item, reply: Reply) -> list[float]:
    """Return what the choices are compared by: summed log-probability, its mean a token, or a character (nats)."""
    if item.compare == "sum":
        return list(reply.logprobs)
    if item.compare == "characters":
        return [total / len(choice.strip()) for total, choice in zip(reply.logprobs, item.choices, strict=True)]
    return [total / count for total, count in zip(reply.logprobs, reply.tokens, strict=True)]


def score_choice_logprob(item: Item, reply: Reply) -> Mark:
    """Return 1 if the right choice is the likeliest continuation of the item's context, else 0.

    Choices are compared by mean log-probability a token, so that long ones are not at a disadvantage (Brown et al.
    2020, arXiv 2005.14165, section 2.4). Winogrande rows hold two versions of the rest of one sentence, so their sums
    are compared (Trinh and Le 2018, arXiv 1806.02847, full scoring): `Item.compare` says which. Sums alone, and sums
    a character, are the `acc` and `acc_norm` of the lm-evaluation-harness. Of equal choices the first counts.
    """
    values = ranking(item, reply)
    chosen = max(range(len(values)), key=values.__getitem__)
    return Mark(float(chosen == item.answer_index), item.choices[chosen])


def _check(item: Item) -> str:
    if len(item.choices) < 2:
        return "'choices' needs at least two entries"
    if item.answer_index is None or not 0 <= item.answer_index < len(item.choices):
        return f"'answer_index' is {item.answer_index}, but must be 0 to {len(item.choices) - 1}"
    return ""


CHOICE_LOGPROB = Metric(
    name="choice_logprob",
    title="Likeliest choice",
    summary="the right choice is the likeliest continuation (compare: mean a token, sum, or sum a character)",
    function=score_choice_logprob,
    paper="https://arxiv.org/abs/2005.14165",
    mode="choose",
    check=_check,
)
