"""CIDEr of generated captions, by the COCO captioning challenge's own package."""

import re
from collections.abc import Sequence
from typing import Any

from striate.artifacts import Prediction
from striate.errors import DataError
from striate.tasks.metrics.base import Metric
from striate.tasks.packs.items import Item, Mark, Reply

SCALE = 10.0
MISSING = "metric 'cider' needs the package pycocoevalcap, which is not installed"
WORD = re.compile(r"\w+(?:['’]\w+)*")


def words_of(text: str) -> str:
    """Return `text` as lower-case words with single spaces, without punctuation."""
    return " ".join(WORD.findall(text.lower()))


def score_cider(item: Item, reply: Reply) -> Mark:
    """Return a score of 0: one caption alone has no CIDEr, see `score_captions`."""
    return Mark(0.0, reply.text.strip(), unparsed=not words_of(reply.text))


def score_captions(items: Sequence[Item], replies: Sequence[Reply]) -> list[Mark]:
    """Return CIDEr-D / 10 of every caption against its references: 0 to 1.

    CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726, section 6) weighs words by how few of the task's pictures have them
    in their references, so all items are scored together and a score depends on which items there are. Computed by
    pycocoevalcap; words are split here (lower case, no punctuation), not by the Java program of that package. An empty
    caption is unparsed.

    Raises:
        DataError: pycocoevalcap is not installed.
    """
    captions = {index: [words_of(reply.text)] for index, reply in enumerate(replies)}
    references = {index: [words_of(answer) for answer in item.answers] for index, item in enumerate(items)}
    _, scores = _package()().compute_score(references, captions)
    return [
        Mark(min(float(score) / SCALE, 1.0), reply.text.strip(), unparsed=not captions[index][0])
        for index, (score, reply) in enumerate(zip(scores, replies, strict=True))
    ]


def cider_details(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Return CIDEr-D on the scale of papers: 100 is a mean of 1 of at most 10."""
    return {"cider": 100 * SCALE * sum(row.score for row in predictions) / len(predictions)}


def _package() -> Any:
    try:
        from pycocoevalcap.cider.cider import Cider
    except ImportError as error:
        raise DataError(MISSING, "striate with its extra 'captions'", "pip install 'striate[captions]'") from error
    return Cider


def _check(item: Item) -> str:
    """Return that the package is missing, or an empty string: better said before hours of asking."""
    try:
        _package()
    except DataError:
        return f"{MISSING}: pip install 'striate[captions]'"
    return ""


CIDER = Metric(
    name="cider",
    title="CIDEr",
    summary="CIDEr-D / 10 of a caption against its references (extra: captions)",
    function=score_cider,
    paper="https://arxiv.org/abs/1411.5726",
    check=_check,
    corpus=score_captions,
    details=cider_details,
)
