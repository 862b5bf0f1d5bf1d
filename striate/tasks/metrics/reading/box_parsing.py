"""Parse bounding boxes in the forms in which models write them, as fractions of the picture. No torch."""

import re
from collections.abc import Callable

Box = tuple[float, float, float, float]
Size = tuple[int, int]

NUMBER = r"([-+]?(?:\d+(?:\.\d*)?|\.\d+))"
GAP = r"(?:\s*,\s*|\s+)"
OPEN, CLOSE = r"[\[(]\s*", r"\s*[\])]"
FOUR = GAP.join([NUMBER] * 4)
POINT = f"{OPEN}{NUMBER}{GAP}{NUMBER}{CLOSE}"
THOUSANDTHS, HUNDREDTHS, LOCATIONS = 1000.0, 100.0, 1024.0


def parse_box(text: str, size: Size | None = None) -> Box | None:
    """Return the first box in `text` as fractions (x1, y1, x2, y2) of width and height, or None.

    Forms, with numbers separated by commas or spaces:

    - `[x1, y1, x2, y2]` or `(x1, y1, x2, y2)`, also within further brackets, `<box>` or JSON
    - `(x1, y1), (x2, y2)` or `[x1, y1], [x2, y2]`
    - `<box>x1 y1 x2 y2</box>`
    - `{<x1><y1><x2><y2>}`: hundredths (MiniGPT-v2, arXiv 2310.09478)
    - `<locY1><locX1><locY2><locX2>`: 1024ths (PaliGemma, arXiv 2407.07726)

    In the first three, numbers that are all at most 1 are fractions. Others are pixels where `size` (width, height) is
    given, and thousandths otherwise. A box that leaves the picture, or has no area (x2 <= x1 or y2 <= y1), has no
    readable form.
    """
    boxes = [(match.start(), read(match, size)) for form, read in FORMS if (match := form.search(text))]
    box = min(boxes, key=lambda pair: pair[0])[1] if boxes else None
    if box is None or not all(0.0 <= value <= 1.0 for value in box):
        return None
    return box if box[0] < box[2] and box[1] < box[3] else None


def overlap(first: Box, second: Box) -> float:
    """Return the intersection over union (IoU, 0 to 1) of two boxes that have an area."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return shared / (areas - shared)


def _free(match: re.Match[str], size: Size | None) -> Box:
    x1, y1, x2, y2 = map(float, match.groups())
    if max(x1, y1, x2, y2) <= 1.0:
        return x1, y1, x2, y2
    width, height = size or (THOUSANDTHS, THOUSANDTHS)
    return x1 / width, y1 / height, x2 / width, y2 / height


def _hundredths(match: re.Match[str], size: Size | None) -> Box:
    x1, y1, x2, y2 = (float(value) / HUNDREDTHS for value in match.groups())
    return x1, y1, x2, y2


def _locations(match: re.Match[str], size: Size | None) -> Box:
    """Return a box of location tokens, which name y before x."""
    y1, x1, y2, x2 = (float(value) / LOCATIONS for value in match.groups())
    return x1, y1, x2, y2


FORMS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str], Size | None], Box]], ...] = (
    (re.compile(OPEN + FOUR + CLOSE), _free),
    (re.compile(POINT + r"\s*,?\s*" + POINT), _free),
    (re.compile(r"<box>\s*" + FOUR + r"\s*</box>"), _free),
    (re.compile(r"\{\s*" + r"\s*".join([r"<\s*(\d+)\s*>"] * 4) + r"\s*\}"), _hundredths),
    (re.compile(r"\s*".join([r"<loc(\d{4})>"] * 4)), _locations),
)
