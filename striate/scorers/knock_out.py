"""Knock-out: what the answer loses when a layer is skipped."""

from torch import Tensor

from striate.scorers.runners.altered import AlteredScorer
from striate.scorers.streaming.answers import answer_hits, answer_losses


def knock_out(plain_NV: Tensor, altered_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Return `loss(without the layer) - loss(with it)` of each answer token in nats, shape (N,).

    The score of layer i is the mean over answer tokens of `log p(y | all layers) - log p(y | all but i)`: 0 for a layer
    that does nothing, negative where the answer gains. Without layer i means that its input is passed on as its output,
    as after its removal. Paper: SLEB, arXiv 2402.09025, ranks blocks by the loss of the model without them.
    """
    return answer_losses(altered_NV, targets_N) - answer_losses(plain_NV, targets_N)


def knock_out_accuracy(plain_NV: Tensor, altered_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Return the fall of teacher-forced accuracy at each answer token, shape (N,): 1 lost, 0 as before, -1 gained.

    A token counts as right when it is the likeliest one after the tokens before it, which are the answer's own.
    """
    return answer_hits(plain_NV, targets_N) - answer_hits(altered_NV, targets_N)


KNOCK_OUT = AlteredScorer(
    name="knock-out",
    title="Knock-out",
    summary="the rise of the answer loss, in nats a token, when the layer is skipped",
    function=knock_out,
    paper="https://arxiv.org/abs/2402.09025",
    source="altered layers",
    limits="one layer at a time: two layers that stand in for each other both look unimportant",
    skips="answer",
)

KNOCK_OUT_ACCURACY = AlteredScorer(
    name="knock-out-accuracy",
    title="Knock-out (accuracy)",
    summary="the fall of answer-token accuracy when the layer is skipped, the answer so far being given",
    function=knock_out_accuracy,
    paper="https://arxiv.org/abs/2402.09025",
    source="altered layers",
    limits="coarse: it moves only where the likeliest token changes, and given answers hide errors that pile up",
    bounds=(-1.0, 1.0),
    skips="answer",
)
