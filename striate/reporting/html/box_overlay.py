"""Read bounding boxes from answers, to draw them over the picture."""

import re

from striate.artifacts import Prediction

Box = tuple[float, float, float, float]
METRIC = "iou50"


def boxes_of(answer: Prediction) -> tuple[Box | None, Box | None]:
    """Return the expected box and the one that was given, as shares of width and height, where there are some."""
    if answer.metric != METRIC:
        return None, None
    return read_box(" ".join(answer.expected[:1])), read_box(answer.answer)


def read_box(text: str) -> Box | None:
    """Return the first four numbers of `text` where they make a box in fractions of width and height."""
    numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)[:4]]
    if len(numbers) < 4 or not all(0 <= value <= 1 for value in numbers):
        return None
    x1, y1, x2, y2 = numbers
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None
