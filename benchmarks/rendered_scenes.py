"""Rendered pictures with questions whose answers are known: shapes, counts, places, words, letters and bars.

Used to align the built-in LVLM and to make small test data. A picture and its questions follow from the seed alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from striate.data.shapes import COLOURS, SHAPES, Placed, background, draw_shape, plural

Question = tuple[str, str]
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")


@dataclass(frozen=True)
class Supplies:
    """What generators draw with: `words` to write, `fonts` as TrueType files (none: Pillow's own), `side` in pixels."""

    words: Sequence[str]
    fonts: Sequence[Path] = ()
    side: int = 224

    def font(self, rng: random.Random, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        """Return one of the fonts at `size` pixels."""
        return ImageFont.truetype(rng.choice(list(self.fonts)), size) if self.fonts else ImageFont.load_default(size)


def words_of(vocabulary: Iterable[str]) -> list[str]:
    """Return the lower-case words of 3 to 9 letters that are one token, of a tokenizer's vocabulary."""
    entries = [entry[1:] for entry in vocabulary if entry[0] in "Ġ▁"]
    return sorted(
        {word for word in entries if word.isascii() and word.isalpha() and word.islower() and 3 <= len(word) < 10}
    )


Generator = Callable[[random.Random, Supplies], tuple[Image.Image, list[Question]]]


def scene(rng: random.Random, supplies: Supplies) -> tuple[Image.Image, list[Question]]:
    """Return 1 to 5 shapes in a 3 x 3 grid, with questions on colour, shape, number, place and relation."""
    canvas, ground = background(rng, supplies.side)
    cells = rng.sample(range(9), rng.choice((1, 1, 2, 2, 3, 4, 5)))
    placed = [_place(rng, cell, supplies.side, ground) for cell in cells]
    for item in placed:
        draw_shape(canvas, item)
    questions = [_count_question(rng, placed)]
    for item in placed:
        questions += _single_questions(rng, item, placed)
    if len(placed) > 1:
        pair = rng.sample(placed, 2)
        looks = [(item.colour, item.shape) for item in placed]
        # Of two shapes that look the same nobody can say which is meant.
        if all(looks.count((item.colour, item.shape)) == 1 for item in pair):
            questions.append(_relation_question(rng, *pair))
    return canvas, questions


def _place(rng: random.Random, cell: int, side: int, ground: str) -> Placed:
    third = side / 3
    radius = third * rng.uniform(0.22, 0.46)
    slack = third / 2 - radius
    x = (cell % 3 + 0.5) * third + rng.uniform(-slack, slack)
    y = (cell // 3 + 0.5) * third + rng.uniform(-slack, slack)
    colour = rng.choice([name for name in COLOURS if name != ground])
    return Placed(
        rng.choice(list(SHAPES)), colour, x, y, radius, rng.uniform(0, 360) if rng.random() < 0.3 else 0.0, cell
    )


def _single_questions(rng: random.Random, item: Placed, others: Sequence[Placed]) -> list[Question]:
    """Return questions that point at `item` by a property that no other shape has."""
    questions = []
    if sum(other.shape == item.shape for other in others) == 1:
        form = rng.choice(("What colour is the {0}?", "Which colour does the {0} have?", "Name the colour of the {0}."))
        questions.append((form.format(item.shape), item.colour))
        form = rng.choice(("Where is the {0}?", "In which part of the picture is the {0}?"))
        questions.append((form.format(item.shape), _cell_name(item.cell)))
    if sum(other.colour == item.colour for other in others) == 1:
        form = rng.choice(("Which shape is {0}?", "What is the {0} thing?", "Name the shape that is {0}."))
        questions.append((form.format(item.colour), item.shape))
    return questions


def _count_question(rng: random.Random, placed: Sequence[Placed]) -> Question:
    item = rng.choice(list(placed))
    what, number = rng.choice(
        (
            ("shapes", len(placed)),
            (f"{item.colour} shapes", sum(other.colour == item.colour for other in placed)),
            (plural(item.shape), sum(other.shape == item.shape for other in placed)),
        )
    )
    return rng.choice(("How many {0} are there?", "Count the {0}.")).format(what), str(number)


def _relation_question(rng: random.Random, first: Placed, second: Placed) -> Question:
    """Return a question on how two shapes lie to each other, along the axis that sets them further apart."""
    dx, dy = first.x - second.x, first.y - second.y
    names = f"the {first.colour} {first.shape}", f"the {second.colour} {second.shape}"
    if abs(dx) >= abs(dy):
        return f"Is {names[0]} left or right of {names[1]}?", "left" if dx < 0 else "right"
    return f"Is {names[0]} above or below {names[1]}?", "above" if dy < 0 else "below"


def _cell_name(cell: int) -> str:
    row, column = ROWS[cell // 3], COLUMNS[cell % 3]
    return "centre" if (row, column) == ("middle", "centre") else f"{row} {column}"


def counting(rng: random.Random, supplies: Supplies) -> tuple[Image.Image, list[Question]]:
    """Return 1 to 9 like shapes strewn over the picture, and their number."""
    canvas, ground = background(rng, supplies.side)
    number = rng.randint(1, 9)
    cells = rng.sample(range(16), number)
    shape, colour = rng.choice(list(SHAPES)), rng.choice([name for name in COLOURS if name != ground])
    quarter = supplies.side / 4
    for cell in cells:
        radius = quarter * rng.uniform(0.2, 0.4)
        slack = quarter / 2 - radius
        x = (cell % 4 + 0.5) * quarter + rng.uniform(-slack, slack)
        y = (cell // 4 + 0.5) * quarter + rng.uniform(-slack, slack)
        draw_shape(canvas, Placed(shape, colour, x, y, radius, 0.0, cell))
    form = rng.choice(("How many {0} {1} are there?", "Count the {1}.", "How many {1} can you see?"))
    return canvas, [
        (form.format(colour, plural(shape)), str(number)),
        (f"What colour are the {plural(shape)}?", colour),
    ]


def _ink(rng: random.Random, ground: str) -> str:
    dark = ("black", "blue", "red", "green", "brown", "purple", "teal")
    light = ("white", "yellow", "cyan", "pink")
    return rng.choice(light if ground in dark else dark)


def _write(
    rng: random.Random, canvas: Image.Image, text: str, supplies: Supplies, ground: str, band: tuple[float, float]
) -> str:
    """Write `text` somewhere inside the vertical band (shares of the height) and return the ink's name."""
    draw, colour = ImageDraw.Draw(canvas), _ink(rng, ground)
    size = rng.randint(22, 56)
    while size > 12:
        font = supplies.font(rng, size)
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        if right - left <= supplies.side - 12 and bottom - top <= (band[1] - band[0]) * supplies.side - 6:
            break
        size -= 4
    x = rng.uniform(4, max(4, supplies.side - (right - left) - 4)) - left
    low, high = band[0] * supplies.side + 2, band[1] * supplies.side - (bottom - top) - 2
    draw.text((x, rng.uniform(low, max(low, high)) - top), text, fill=COLOURS[colour], font=font)
    return colour


def _text(rng: random.Random, supplies: Supplies) -> str:
    kind = rng.random()
    if kind < 0.6:
        word = supplies.words[rng.randrange(len(supplies.words))]
        return rng.choice((word, word, word.upper(), word.capitalize()))
    if kind < 0.8:
        return "".join(rng.choice("ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(rng.randint(1, 4)))
    return str(rng.randint(0, 10 ** rng.randint(1, 4)))


def reading(rng: random.Random, supplies: Supplies) -> tuple[Image.Image, list[Question]]:
    """Return one written word, letters or number, with questions on the text and its colour."""
    canvas, ground = background(rng, supplies.side)
    text = _text(rng, supplies)
    colour = _write(rng, canvas, text, supplies, ground, (0.0, 1.0))
    form = rng.choice(("What is written here?", "Read the text.", "Which word is shown?", "What does the sign say?"))
    return canvas, [(form, text), ("What colour is the text?", colour)]


def two_lines(rng: random.Random, supplies: Supplies) -> tuple[Image.Image, list[Question]]:
    """Return two lines of text, with questions that name one of them."""
    canvas, ground = background(rng, supplies.side)
    upper, lower = _text(rng, supplies), _text(rng, supplies)
    _write(rng, canvas, upper, supplies, ground, (0.0, 0.5))
    _write(rng, canvas, lower, supplies, ground, (0.5, 1.0))
    questions = [("What is written at the top?", upper), ("What is written at the bottom?", lower)]
    rng.shuffle(questions)
    return canvas, questions


def bars(rng: random.Random, supplies: Supplies) -> tuple[Image.Image, list[Question]]:
    """Return a bar chart of 2 to 5 coloured bars, with questions on the tallest, the shortest, order and number."""
    canvas = Image.new("RGB", (supplies.side, supplies.side), "white")
    draw = ImageDraw.Draw(canvas)
    names = rng.sample([name for name in COLOURS if name != "white"], rng.randint(2, 5))
    heights = rng.sample(range(1, 11), len(names))
    width = supplies.side / len(names)
    for index, (name, height) in enumerate(zip(names, heights, strict=True)):
        left = index * width + width * 0.15
        top = supplies.side * (0.95 - 0.085 * height)
        draw.rectangle((left, top, left + width * 0.7, supplies.side * 0.95), fill=COLOURS[name])
    first, second = rng.sample(range(len(names)), 2)
    questions = [
        ("Which bar is the tallest?", names[heights.index(max(heights))]),
        ("What colour is the shortest bar?", names[heights.index(min(heights))]),
        (
            f"Is the {names[first]} bar higher than the {names[second]} bar?",
            "yes" if heights[first] > heights[second] else "no",
        ),
        ("How many bars are there?", str(len(names))),
    ]
    rng.shuffle(questions)
    return canvas, questions


GENERATORS: dict[str, Generator] = {
    "scene": scene,
    "counting": counting,
    "reading": reading,
    "two_lines": two_lines,
    "bars": bars,
}


def render(kind: str, seed: int, supplies: Supplies) -> tuple[Image.Image, list[Question]]:
    """Return the picture and questions of `kind` that `seed` stands for."""
    return GENERATORS[kind](random.Random(f"{kind}-{seed}"), supplies)
