"""Block Influence: how much a layer turns the hidden states."""

from striate.scorers.base import LayerScorer
from striate.scorers.streaming.view import LayerView, Tally


def block_influence(view: LayerView) -> dict[str, Tally]:
    """Return the sums behind `1 - mean over tokens of cos(x_in, x_out)`: 0 for an identity layer, at most 2.

    Paper: ShortGPT, arXiv 2403.03853, its definition of Block Influence. The last layer's output is taken before the
    final norm, and padding does not count. Shown beside the score: the same on image, prompt and answer tokens.
    """
    return view.tally(view.cosine_distance, "all", "image", "prompt", "answer")


BLOCK_INFLUENCE = LayerScorer(
    name="block-influence",
    title="Block Influence",
    summary="one minus the cosine between a layer's input and output, over all tokens",
    function=block_influence,
    paper="https://arxiv.org/abs/2403.03853",
    shown=("image", "prompt", "answer"),
    limits="a turn of the hidden states need not matter to the answer, and where image tokens are many they decide",
)
