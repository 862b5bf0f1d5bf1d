"""Pairs of pictures that differ in one attribute, with a question about it and both answers.

In the manner of Vision Function Layers (arXiv 2509.24791), which probes single visual abilities with minimally
different pictures. A pair follows from its attribute and seed alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw, ImageFont

from striate.data.shapes import COLOURS, SHAPES, Placed, background, draw_shape, plural

_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
_WORDS = (
    "apple bread chair cloud dance earth field glass heart horse house light money music night ocean paper plant queen "
    "river road sheep shore sleep smile snow stone storm summer sugar table tiger train tree truck water wheel winter "
    "woman world young zebra"
)


@dataclass(frozen=True)
class PicturePair:
    """Two pictures of one size that differ in `attribute` only, and the answer that each gives to `question`."""

    attribute: str
    question: str
    pictures: tuple[Image.Image, Image.Image]
    answers: tuple[str, str]


@dataclass(frozen=True)
class _Ground:
    canvas: Image.Image
    name: str

    def with_shapes(self, placed: Sequence[Placed]) -> Image.Image:
        picture = self.canvas.copy()
        for item in placed:
            draw_shape(picture, item)
        return picture

    def colours(self, rng: random.Random, count: int) -> list[str]:
        return rng.sample([name for name in COLOURS if name != self.name], count)


def _cell(rng: random.Random, side: int, grid: int, cell: int, shape: str, colour: str) -> Placed:
    part = side / grid
    x, y = (cell % grid + 0.5) * part, (cell // grid + 0.5) * part
    return Placed(shape, colour, x, y, part * rng.uniform(0.3, 0.42), 0.0, cell)


def _scene(rng: random.Random, side: int) -> tuple[_Ground, Placed, list[Placed]]:
    """Return a ground, the shape in question, and up to two others of another shape and colour."""
    ground = _Ground(*background(rng, side))
    number = rng.randint(1, 3)
    colours = ground.colours(rng, number)
    cells, shapes = rng.sample(range(9), number), rng.sample(list(SHAPES), number)
    placed = [_cell(rng, side, 3, *each) for each in zip(cells, shapes, colours, strict=True)]
    return ground, placed[0], placed[1:]


def _colour(rng: random.Random, side: int) -> PicturePair:
    ground, item, others = _scene(rng, side)
    taken = {item.colour, ground.name, *(other.colour for other in others)}
    other = replace(item, colour=rng.choice([name for name in COLOURS if name not in taken]))
    pictures = ground.with_shapes([item, *others]), ground.with_shapes([other, *others])
    return PicturePair("colour", f"What colour is the {item.shape}?", pictures, (item.colour, other.colour))


def _shape(rng: random.Random, side: int) -> PicturePair:
    ground, item, others = _scene(rng, side)
    taken = {item.shape, *(other.shape for other in others)}
    other = replace(item, shape=rng.choice([name for name in SHAPES if name not in taken]))
    pictures = ground.with_shapes([item, *others]), ground.with_shapes([other, *others])
    return PicturePair("shape", f"Which shape is {item.colour}?", pictures, (item.shape, other.shape))


def _count(rng: random.Random, side: int) -> PicturePair:
    """Return two numbers of like shapes: the larger picture has those of the smaller one, and more."""
    ground = _Ground(*background(rng, side))
    (colour,), shape = ground.colours(rng, 1), rng.choice(list(SHAPES))
    placed = [_cell(rng, side, 4, cell, shape, colour) for cell in rng.sample(range(16), 6)]
    numbers = rng.sample(range(1, 7), 2)
    first, second = (ground.with_shapes(placed[:number]) for number in numbers)
    answers = str(numbers[0]), str(numbers[1])
    return PicturePair("count", f"How many {plural(shape)} are there?", (first, second), answers)


def _position(rng: random.Random, side: int) -> PicturePair:
    ground, item, others = _scene(rng, side)
    taken = {item.cell, *(other.cell for other in others)}
    cell = rng.choice([cell for cell in range(9) if cell not in taken])
    part = side / 3
    other = replace(item, cell=cell, x=(cell % 3 + 0.5) * part, y=(cell // 3 + 0.5) * part)
    pictures = ground.with_shapes([item, *others]), ground.with_shapes([other, *others])
    return PicturePair("position", f"Where is the {item.shape}?", pictures, (_place(item.cell), _place(cell)))


def _word(rng: random.Random, side: int) -> PicturePair:
    ground = _Ground(*background(rng, side))
    words = rng.sample(_WORDS.split(), 2)
    dark = ground.name in ("black", "gray", "teal", "brown")
    ink = COLOURS[rng.choice(("white", "yellow") if dark else ("black", "blue"))]
    font = ImageFont.load_default(side * rng.uniform(0.15, 0.2))
    place = side * rng.uniform(0.05, 0.15), side * rng.uniform(0.1, 0.65)
    pictures = (ground.canvas.copy(), ground.canvas.copy())
    for picture, word in zip(pictures, words, strict=True):
        ImageDraw.Draw(picture).text(place, word, fill=ink, font=font)
    return PicturePair("word", "What is written here?", pictures, (words[0], words[1]))


def _place(cell: int) -> str:
    row, column = _ROWS[cell // 3], _COLUMNS[cell % 3]
    return "centre" if (row, column) == ("middle", "centre") else f"{row} {column}"


_MAKERS: dict[str, Callable[[random.Random, int], PicturePair]] = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "position": _position,
    "word": _word,
}
ATTRIBUTES = tuple(_MAKERS)


def picture_pair(attribute: str, seed: int, side: int = 224) -> PicturePair:
    """Return the pair of pictures, `side` pixels wide and high, that `attribute` and `seed` stand for."""
    return _MAKERS[attribute](random.Random(f"{attribute}-{seed}"), side)
