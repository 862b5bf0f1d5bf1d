"""Grounding accuracy: IoU of at least 0.5 between the model's box and the true one."""

from striate.tasks.metrics.base import Metric
from striate.tasks.metrics.reading.box_parsing import overlap, parse_box
from striate.tasks.packs.items import Item, Mark, Reply

THRESHOLD = 0.5
ROUNDING = 1e-9


def score_iou50(item: Item, reply: Reply) -> Mark:
    """Return 1 if the answer's box overlaps an accepted one with an IoU of at least 0.5, else 0.

    Accuracy at 0.5 of referring-expression grounding (Mao et al. 2016, arXiv 1511.02283, section 5), with the overlap
    of PASCAL VOC (Everingham et al. 2010). `metrics.reading.box_parsing` says which forms are read; an answer without
    one scores 0 and is unparsed.
    """
    box = parse_box(reply.text, item.size)
    if box is None:
        return Mark(0.0, reply.text.strip(), unparsed=True)
    accepted = [true for answer in item.answers if (true := parse_box(answer, item.size)) is not None]
    right = any(overlap(box, true) >= THRESHOLD - ROUNDING for true in accepted)
    return Mark(float(right), reply.text.strip())


def _check(item: Item) -> str:
    wrong = [answer for answer in item.answers if parse_box(answer, item.size) is None]
    return f"answer {wrong[0]!r} is not a box [x1, y1, x2, y2] with an area, inside the picture" if wrong else ""


IOU50 = Metric(
    name="iou50",
    title="Grounding, IoU at least 0.5",
    summary="the box that the model writes overlaps the true one by at least half of their union",
    function=score_iou50,
    paper="https://arxiv.org/abs/1511.02283",
    check=_check,
)
