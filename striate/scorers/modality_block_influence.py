"""Modality-aware Block Influence: image tokens and text tokens count the same, however many there are."""

from striate.scorers.base import LayerScorer
from striate.scorers.streaming.view import LayerView, Tally


def modality_block_influence(view: LayerView) -> dict[str, Tally]:
    """Return the sums behind Block Influence on image tokens and on text tokens apart.

    The score is the mean of `1 - mean cos` on image tokens and `1 - mean cos` on text tokens. Block Influence itself is
    ShortGPT's (arXiv 2403.03853). Image tokens are found by their ids, so samples may have any number of them, or none.
    Shown beside the score: the text tokens of prompts and of answers apart.
    """
    return view.tally(view.cosine_distance, "image", "text", "prompt", "answer")


MODALITY_BLOCK_INFLUENCE = LayerScorer(
    name="modality-block-influence",
    title="Modality-aware Block Influence",
    summary="Block Influence on image tokens and on text tokens, averaged with equal weight",
    function=modality_block_influence,
    paper="https://arxiv.org/abs/2403.03853",
    shown=("prompt", "answer"),
    needs_pictures=True,
    limits="a turn of the hidden states need not matter to the answer; it needs samples with pictures",
)
