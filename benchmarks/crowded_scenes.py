"""Pictures of several shapes and letters, with questions that aligning the built-in LVLM did not teach."""

from __future__ import annotations

import random
from dataclasses import dataclass
from operator import attrgetter

from PIL import Image, ImageDraw, ImageFont

from striate.data.shapes import COLOURS, SHAPES, Placed, background, draw_shape, plural

_GRID = 4
_LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"
# How far in columns and rows the next thing lies, in words.
_WAYS = {"to the right of": (1, 0), "to the left of": (-1, 0), "above": (0, -1), "below": (0, 1)}


@dataclass(frozen=True)
class Asked:
    """A question of one ability, its answer, and the metric that judges answers."""

    ability: str
    question: str
    answer: str
    metric: str = "exact"


@dataclass(frozen=True)
class Scene:
    """What a picture shows: shapes by cell, letters with their colours by cell, pixels a side."""

    shapes: dict[int, Placed]
    letters: dict[int, tuple[str, str]]
    side: int

    def name(self, cell: int) -> str:
        """Return what is in a cell, in words."""
        if cell in self.letters:
            return f"letter {self.letters[cell][0]}"
        return _name(self.shapes[cell])

    def single(self) -> list[int]:
        """Return the cells of shapes that no other shape looks like."""
        names = [_name(item) for item in self.shapes.values()]
        return [cell for cell, item in self.shapes.items() if names.count(_name(item)) == 1]


def crowd(rng: random.Random, side: int = 224) -> tuple[Image.Image, list[Asked]]:
    """Return 3 to 8 shapes, one of them large, and up to 2 letters in a 4 x 4 grid, with a question an ability."""
    canvas, ground = background(rng, side)
    colours = rng.sample([name for name in COLOURS if name != ground], rng.randint(3, 5))
    kinds, number, lettered = rng.sample(list(SHAPES), rng.randint(3, 5)), rng.randint(3, 8), rng.randint(0, 2)
    cells = rng.sample(range(_GRID**2), number + lettered)
    part, shapes = side / _GRID, {}
    for index, cell in enumerate(cells[:number]):
        radius = part * (0.47 if index == 0 else rng.uniform(0.24, 0.34))
        x, y = (
            part * (place + 0.5) + rng.uniform(-1, 1) * (part / 2 - radius) for place in (cell % _GRID, cell // _GRID)
        )
        shapes[cell] = Placed(rng.choice(kinds), rng.choice(colours), x, y, radius, 0.0, cell)
        draw_shape(canvas, shapes[cell])
    inks = rng.sample(colours, lettered)
    letters = {cell: (rng.choice(_LETTERS), ink) for cell, ink in zip(cells[number:], inks, strict=True)}
    for cell, (letter, ink) in letters.items():
        place = ((cell % _GRID + 0.5) * part, (cell // _GRID + 0.5) * part)
        ImageDraw.Draw(canvas).text(place, letter, COLOURS[ink], ImageFont.load_default(part * 0.75), anchor="mm")
    scene = Scene(shapes, letters, side)
    found = [ask(rng, scene) for ask in (_box, _count, _more, _present, _next_to, _largest, _letter)]
    return canvas, [one for one in found if one]


def _name(item: Placed) -> str:
    """Return a shape in words."""
    return f"{item.colour} {item.shape}"


def _box(rng: random.Random, scene: Scene) -> Asked | None:
    """Ask where a shape is, as fractions of width and height."""
    if not (cells := scene.single()):
        return None
    item = scene.shapes[rng.choice(cells)]
    across, down = zip(*SHAPES[item.shape], strict=True)
    ends = [item.x + item.radius * min(across), item.y + item.radius * min(down)]
    ends += [item.x + item.radius * max(across), item.y + item.radius * max(down)]
    told = ", ".join(f"{min(max(end / scene.side, 0.0), 1.0):.2f}" for end in ends)
    return Asked("grounding", f"Give the box of the {_name(item)}.", f"[{told}]", "iou50")


def _count(rng: random.Random, scene: Scene) -> Asked:
    """Ask for a number of shapes of one or two kinds, or of all but one."""
    items = list(scene.shapes.values())
    one = rng.choice(items)
    two = rng.choice([item for item in items if item.colour != one.colour] or items)
    what, holds = rng.choice(
        (
            (f"shapes are {one.colour} or {two.colour}", lambda item: item.colour in (one.colour, two.colour)),
            (f"shapes are not {one.colour}", lambda item: item.colour != one.colour),
            (f"{plural(one.shape)} are there", lambda item: item.shape == one.shape),
        )
    )
    return Asked("counting", f"How many {what}?", str(sum(map(holds, items))))


def _more(rng: random.Random, scene: Scene) -> Asked | None:
    """Ask of which of two kinds there are more."""
    kind = attrgetter(rng.choice(("colour", "shape")))
    kinds = [kind(item) for item in scene.shapes.values()]
    if len(set(kinds)) < 2:
        return None
    first, second = rng.sample(sorted(set(kinds)), 2)
    if kinds.count(first) == kinds.count(second):
        return None
    words = [f"{one} shapes" if one in COLOURS else plural(one) for one in (first, second)]
    return Asked(
        "compare",
        f"Are there more {words[0]} than {words[1]}?",
        "yes" if kinds.count(first) > kinds.count(second) else "no",
    )


def _present(rng: random.Random, scene: Scene) -> Asked | None:
    """Ask for a shape of a colour, where both occur, together or apart."""
    names = {_name(item) for item in scene.shapes.values()}
    items = list(scene.shapes.values())
    apart = sorted({f"{one.colour} {two.shape}" for one in items for two in items} - names)
    if not apart:
        return None
    is_there = rng.random() < 0.5
    asked = rng.choice(sorted(names) if is_there else apart)
    article = "an" if asked.startswith("orange") else "a"
    return Asked("binding", f"Is there {article} {asked}?", "yes" if is_there else "no")


def _next_to(rng: random.Random, scene: Scene) -> Asked | None:
    """Ask for what is in the cell beside a shape."""
    found = []
    for cell in scene.single():
        for way, (right, down) in _WAYS.items():
            column, row = cell % _GRID + right, cell // _GRID + down
            other = row * _GRID + column
            if 0 <= column < _GRID and 0 <= row < _GRID and (other in scene.shapes or other in scene.letters):
                found.append((way, cell, other))
    if not found:
        return None
    way, cell, other = rng.choice(found)
    return Asked("relation", f"What is {way} the {scene.name(cell)}?", scene.name(other))


def _largest(_: random.Random, scene: Scene) -> Asked:
    """Ask which shape is the largest."""
    return Asked(
        "recognition", "Which shape is the largest?", _name(max(scene.shapes.values(), key=lambda item: item.radius))
    )


def _letter(rng: random.Random, scene: Scene) -> Asked | None:
    """Ask for a letter by its colour."""
    if not scene.letters:
        return None
    letter, ink = rng.choice(sorted(scene.letters.values()))
    return Asked("reading", f"Which letter is {ink}?", letter)
