"""Relative magnitude: how large a layer's update is beside what it updates."""

from striate.scorers.base import LayerScorer
from striate.scorers.streaming.view import LayerView, Tally


def relative_magnitude(view: LayerView) -> dict[str, Tally]:
    """Return the sums behind `mean over tokens of |x_out - x_in| / |x_in|`: 0 for an identity layer, without a limit.

    Paper: Samragh et al., arXiv 2312.09299, weigh a layer by its update's size; they divide by the output, this by the
    input, so that an update that cancels its input does not grow without limit. A token whose input is zero counts
    as 1. Shown beside the score: image, text, prompt and answer tokens.
    """
    return view.tally(view.deviation.relative_update, "all", "image", "text", "prompt", "answer")


RELATIVE_MAGNITUDE = LayerScorer(
    name="relative-magnitude",
    title="Relative magnitude of the update",
    summary="the length of a layer's update divided by the length of its input, over all tokens",
    function=relative_magnitude,
    paper="https://arxiv.org/abs/2312.09299",
    shown=("image", "text", "prompt", "answer"),
    limits="first layers score high because their inputs are short, and a mere rescaling counts as much as a turn",
)
