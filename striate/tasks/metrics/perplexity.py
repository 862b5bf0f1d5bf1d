"""Perplexity of plain text."""

import math
from collections.abc import Sequence

from striate.artifacts import Prediction
from striate.tasks.metrics.base import Metric
from striate.tasks.packs.items import Item, Mark, Reply


def score_perplexity(item: Item, reply: Reply) -> Mark:
    """Return the mean negative log-likelihood of the text in nats a token; its weight is the token count.

    The task's score is then the mean over all tokens, the logarithm of perplexity (Jelinek et al. 1977). Higher is
    worse, so retention is `exp(baseline - model)`, the ratio of the two perplexities. The answer shown is this
    text's own perplexity.
    """
    nats = -reply.logprobs[0] / reply.tokens[0]
    shown = f"perplexity {math.exp(nats):.4g}" if nats < 700 else "perplexity too large to show"
    return Mark(nats, shown, weight=float(reply.tokens[0]))


def perplexity_details(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Return how many tokens were scored, and the perplexity of all of them together (0 where it is too large)."""
    tokens = sum(row.weight for row in predictions)
    nats = sum(row.score * row.weight for row in predictions) / tokens
    return {"tokens": tokens, "perplexity": math.exp(nats) if nats < 700 else 0.0}


PERPLEXITY = Metric(
    name="perplexity",
    title="Perplexity, log",
    summary="mean negative log-likelihood of a text, in nats a token; lower is better",
    function=score_perplexity,
    paper="https://doi.org/10.1121/1.2016299",
    mode="perplexity",
    higher_is_better=False,
    details=perplexity_details,
)
