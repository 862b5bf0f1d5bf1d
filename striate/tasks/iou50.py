"""Grounding: whether the box that the model writes overlaps the true one."""

from __future__ import annotations

import re

from striate.tasks.items import Item, Mark, Reply
from striate.tasks.metric import Metric

THRESHOLD = 0.5
ROUNDING = 1e-9
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
BOX = re.compile(r"\[\s*" + r"\s*,\s*".join([f"({NUMBER})"] * 4) + r"\s*\]")

Box = tuple[float, float, float, float]


def parse_box(text: str) -> Box | None:
    """Return the first `[x1, y1, x2, y2]` in `text`, or None.

    Coordinates are fractions of the picture's width and height: a box with a value outside 0 to 1, or without area
    (x2 <= x1 or y2 <= y1), has no readable form.
    """
    match = BOX.search(text)
    if match is None:
        return None
    x1, y1, x2, y2 = map(float, match.groups())
    inside = all(0.0 <= value <= 1.0 for value in (x1, y1, x2, y2))
    return (x1, y1, x2, y2) if inside and x1 < x2 and y1 < y2 else None


def overlap(first: Box, second: Box) -> float:
    """Return the intersection over union (IoU, 0 to 1) of two boxes that have an area."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return shared / (areas - shared)


def score_iou50(item: Item, reply: Reply) -> Mark:
    """Return 1 if the answer's box overlaps an accepted one with an IoU of at least 0.5, else 0.

    Accuracy at 0.5 of referring-expression grounding (Mao et al. 2016, arXiv 1511.02283, section 5), with the overlap
    of PASCAL VOC (Everingham et al. 2010). An answer without a readable box scores 0 and is unparsed.
    """
    box = parse_box(reply.text)
    if box is None:
        return Mark(0.0, reply.text.strip(), unparsed=True)
    accepted = [true for true in map(parse_box, item.answers) if true is not None]
    right = any(overlap(box, true) >= THRESHOLD - ROUNDING for true in accepted)
    return Mark(float(right), reply.text.strip())


def _check(item: Item) -> str:
    """Return which accepted answer of `item` is no box, or an empty string."""
    wrong = [answer for answer in item.answers if parse_box(answer) is None]
    return f"answer {wrong[0]!r} is not a box [x1, y1, x2, y2] of fractions with an area" if wrong else ""


IOU50 = Metric(
    name="iou50",
    title="Grounding, IoU at least 0.5",
    summary="the box that the model writes overlaps the true one by at least half of their union",
    function=score_iou50,
    paper="https://arxiv.org/abs/1511.02283",
    mode="generate",
    check=_check,
)
