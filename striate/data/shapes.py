"""Draws the shapes, colours and backgrounds of rendered pictures."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 150, 50),
    "blue": (30, 60, 210),
    "yellow": (245, 215, 30),
    "black": (15, 15, 15),
    "gray": (130, 130, 130),
    "teal": (0, 128, 128),
    "brown": (135, 80, 35),
    "orange": (245, 140, 20),
    "purple": (130, 40, 160),
    "pink": (250, 150, 190),
    "white": (252, 252, 252),
    "cyan": (60, 220, 235),
}
Point = tuple[float, float]


def _ring(sides: int, start: float = -90.0) -> list[Point]:
    angles = [math.radians(start + 360 * index / sides) for index in range(sides)]
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


def _star() -> list[Point]:
    return [
        (math.cos(angle) * radius, math.sin(angle) * radius)
        for index in range(10)
        for angle, radius in [(math.radians(-90 + 36 * index), 1.0 if index % 2 == 0 else 0.42)]
    ]


def _cross() -> list[Point]:
    arm = 0.33
    corner = [(-arm, -1.0), (arm, -1.0), (arm, -arm), (1.0, -arm), (1.0, arm), (arm, arm)]
    return corner + [(-x, -y) for x, y in corner]


SHAPES: dict[str, list[Point]] = {
    "circle": _ring(40),
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "rectangle": [(-1.0, -0.55), (1.0, -0.55), (1.0, 0.55), (-1.0, 0.55)],
    "triangle": _ring(3),
    "star": _star(),
    "hexagon": _ring(6),
    "diamond": [(0.0, -1.0), (0.65, 0.0), (0.0, 1.0), (-0.65, 0.0)],
    "cross": _cross(),
}


@dataclass(frozen=True)
class Placed:
    """One drawn shape: its centre and radius in pixels, its turn in degrees, and the grid cell it lies in."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    turn: float
    cell: int


def draw_shape(canvas: Image.Image, item: Placed) -> None:
    """Draw `item` onto `canvas`."""
    angle = math.radians(item.turn)
    cosine, sine = math.cos(angle) * item.radius, math.sin(angle) * item.radius
    corners = [(item.x + x * cosine - y * sine, item.y + x * sine + y * cosine) for x, y in SHAPES[item.shape]]
    ImageDraw.Draw(canvas).polygon(corners, fill=_jitter(item, COLOURS[item.colour]))


def _jitter(item: Placed, colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return `colour` a little off, by the shape's place, so that one name covers many values."""
    spread = random.Random(f"{item.x:.3f}{item.y:.3f}")
    red, green, blue = (min(255, max(0, value + spread.randint(-14, 14))) for value in colour)
    return red, green, blue


def background(rng: random.Random, side: int) -> tuple[Image.Image, str]:
    """Return a square canvas (plain or with a slight gradient) and the name of its colour."""
    name = rng.choice(("white", "white", "white", "black", "gray", "yellow", "cyan", "pink", "teal", "brown"))
    base = COLOURS[name]
    canvas = Image.new("RGB", (side, side), base)
    if rng.random() < 0.4:
        shade = tuple(max(0, min(255, value + rng.randint(-30, 30))) for value in base)
        ramp = Image.linear_gradient("L").resize((side, side)).rotate(rng.choice((0, 90, 180, 270)))
        canvas = Image.composite(Image.new("RGB", (side, side), shade), canvas, ramp)
    return canvas, name


def plural(shape: str) -> str:
    """Return the plural of a shape's name."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"
