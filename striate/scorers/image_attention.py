"""Image attention: how much of the text's attention a layer spends on the picture."""

from striate.scorers.base import LayerScorer
from striate.scorers.streaming.attention_view import AttentionView
from striate.scorers.streaming.view import Tally


def image_attention(view: AttentionView) -> dict[str, Tally]:
    """Return the sums behind the mean attention mass that text queries give to image tokens: 0 to 1.

    Paper: FastV, Chen et al., arXiv 2403.06764, its attention allocation. Each query's mass is the sum over image keys
    of its softmax, mean over heads, worked out in float32 from the layer's own queries, keys and mask, a chunk of
    queries at a time; no attention map is kept. Queries are the text tokens that come after an image token of their own
    sample. In layers with a sliding window, image tokens outside it get none. Shown beside the score: queries of
    prompts and of answers apart.
    """
    return view.tally(view.image_mass, "text", "prompt", "answer")


IMAGE_ATTENTION = LayerScorer(
    name="image-attention",
    title="Image attention",
    summary="the mean share of attention that text tokens give to image tokens",
    function=image_attention,
    paper="https://arxiv.org/abs/2403.06764",
    source="attention",
    shown=("prompt", "answer"),
    needs_pictures=True,
    limits="attention may rest on tokens that carry nothing (sinks), and values that are read may be small",
)
