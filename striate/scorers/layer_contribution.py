"""Layer contribution (ShortV): how much the output changes when image or text tokens skip a layer's update."""

from torch import Tensor

from striate.scorers.runners.altered import AlteredScorer
from striate.scorers.streaming.answers import divergence


def layer_contribution(plain_NV: Tensor, altered_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Return `KL(p || p_i)` of the next-token distributions in nats, at every position that predicts an answer token.

    p is the model's and p_i that of the model whose layer i leaves the chosen tokens as they came in; the others still
    attend to those, unaltered, in that layer. ShortV (arXiv 2504.00502, its Layer Contribution) takes the divergence
    at the last position of the prompt; here it is the mean over all positions that predict an answer token, given the
    answer so far, of which that is the first. 0 for a layer that does nothing to these tokens.
    """
    return divergence(plain_NV, altered_NV)


LAYER_CONTRIBUTION_IMAGE = AlteredScorer(
    name="layer-contribution-image",
    title="Layer contribution, image tokens",
    summary="the divergence of the answers' distributions when image tokens skip the layer's update",
    function=layer_contribution,
    paper="https://arxiv.org/abs/2504.00502",
    source="altered layers",
    limits="any change of the distribution counts, for better or worse, and the last layer's image update reaches none",
    skips="image",
)

LAYER_CONTRIBUTION_TEXT = AlteredScorer(
    name="layer-contribution-text",
    title="Layer contribution, text tokens",
    summary="the divergence of the answers' distributions when text tokens skip the layer's update",
    function=layer_contribution,
    paper="https://arxiv.org/abs/2504.00502",
    source="altered layers",
    limits="any change of the distribution counts, for better or worse",
    skips="text",
)
