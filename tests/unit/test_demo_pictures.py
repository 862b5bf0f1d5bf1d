"""Rendered pictures: the seed says all, and the answers are true of the pixels."""

from __future__ import annotations

import random
import re
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import rendered_scenes as pictures
from PIL import Image
from rendered_scenes import GENERATORS, Supplies, render

from striate.data.shapes import COLOURS, SHAPES, Placed, draw_shape, plural

WORDS = Supplies(words=("stripe", "cortex", "layer"))
SEEDS = range(25)
# Colours are drawn up to 14 levels off in each channel.
NEAR = 15


def spots(image: Image.Image, colour: str, near: int = NEAR) -> int:
    """Return how many connected spots of `colour` with 12 pixels or more `image` has."""
    pixels = np.asarray(image).astype(int)
    mask = (abs(pixels - np.array(COLOURS[colour])) <= near).all(-1)
    seen = np.zeros_like(mask)
    count = 0
    for start in zip(*np.nonzero(mask), strict=True):
        if seen[start]:
            continue
        size, queue = 0, deque([start])
        seen[start] = True
        while queue:
            row, column = queue.popleft()
            size += 1
            for place in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if min(place) >= 0 and max(place) < len(mask) and mask[place] and not seen[place]:
                    seen[place] = True
                    queue.append(place)
        count += size >= 12
    return count


@pytest.mark.parametrize("kind", GENERATORS)
def test_same_seed_same_picture(kind: str) -> None:
    pairs = [(render(kind, seed, WORDS), render(kind, seed, WORDS)) for seed in SEEDS]
    for (one, asked), (other, again) in pairs:
        assert one.tobytes() == other.tobytes()
        assert asked == again
    assert len({one.tobytes() for (one, _), _ in pairs}) == len(pairs)


@pytest.mark.parametrize("kind", GENERATORS)
def test_pictures_and_questions_are_well_formed(kind: str) -> None:
    for seed in SEEDS:
        image, questions = render(kind, seed, Supplies(WORDS.words, side=160))
        assert (image.size, image.mode) == ((160, 160), "RGB")
        assert questions
        for question, answer in questions:
            assert question[0].isupper()
            assert question[-1] in ".?"
            assert answer.strip() == answer != ""


def placed_in(seed: int, monkeypatch: pytest.MonkeyPatch, kind: str) -> tuple[Image.Image, list, list[Placed]]:
    """Return a picture with its questions and the shapes that were drawn."""
    drawn: list[Placed] = []

    def note(canvas: Image.Image, item: Placed) -> None:
        drawn.append(item)
        draw_shape(canvas, item)

    monkeypatch.setattr(pictures, "draw_shape", note)
    image, questions = render(kind, seed, WORDS)
    return image, questions, drawn


@pytest.mark.parametrize("seed", SEEDS)
def test_named_colour_is_that_of_the_shapes_middle(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image, _, drawn = placed_in(seed, monkeypatch, "scene")
    for item in drawn:
        pixel = np.array(image.getpixel((round(item.x), round(item.y))))
        assert abs(pixel - COLOURS[item.colour]).max() <= NEAR
        others = {name: abs(pixel - np.array(value)).sum() for name, value in COLOURS.items()}
        assert others[item.colour] <= min(others.values()) + 3 * NEAR


@pytest.mark.parametrize("seed", range(60))
def test_answers_of_scenes_are_true(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, questions, drawn = placed_in(seed, monkeypatch, "scene")
    for question, answer in questions:
        assert true_answer(question, drawn) == answer, question


def true_answer(question: str, drawn: list[Placed]) -> str:
    """Return the answer, from the words of the question and where the shapes are."""
    if found := re.match(r"(?:How many|Count the) (.+?)(?: are there\?|\.)$", question):
        what = found[1]
        if what == "shapes":
            return str(len(drawn))
        if what.endswith(" shapes"):
            return str(sum(item.colour == what.removesuffix(" shapes") for item in drawn))
        return str(sum(plural(item.shape) == what for item in drawn))
    if found := re.match(r"Is the (\w+) (\w+) (left or right of|above or below) the (\w+) (\w+)\?", question):
        firsts, seconds = (
            [item for item in drawn if (item.colour, item.shape) == pair]
            for pair in (found.group(1, 2), found.group(4, 5))
        )
        axis, words = ("x", ("left", "right")) if found[3].startswith("left") else ("y", ("above", "below"))
        answers = {
            words[getattr(first, axis) > getattr(second, axis)]
            for first in firsts
            for second in seconds
            if first is not second
        }
        assert len(answers) == 1, "the question points at more than one pair"
        return answers.pop()
    named = [item for item in drawn if re.search(rf"\b({item.shape}|{item.colour})\b", question)]
    assert len(named) == 1, "the question points at more than one shape"
    item = named[0]
    if "colour" in question:
        return item.colour
    if "shape" in question or "thing" in question:
        return item.shape
    row, column = int(item.y // (224 / 3)), int(item.x // (224 / 3))
    rows, columns = ("top", "middle", "bottom"), ("left", "centre", "right")
    return "centre" if (row, column) == (1, 1) else f"{rows[row]} {columns[column]}"


@pytest.mark.parametrize("seed", SEEDS)
def test_counts_are_those_of_the_pixels(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image, questions, drawn = placed_in(seed, monkeypatch, "counting")
    answers = dict(questions)
    colour = drawn[0].colour
    assert answers[f"What colour are the {plural(drawn[0].shape)}?"] == colour
    assert int(questions[0][1]) == len(drawn)
    ground = np.asarray(image)[0, 0].astype(int)
    if abs(ground - np.array(COLOURS[colour])).max() > 3 * NEAR:
        assert spots(image, colour) == len(drawn)


@pytest.mark.parametrize("seed", SEEDS)
def test_bars_are_as_high_as_said(seed: int) -> None:
    image, questions = render("bars", seed, WORDS)
    pixels = np.asarray(image)
    heights = {}
    for name, value in COLOURS.items():
        rows = np.nonzero((pixels == value).all(-1))[0]
        if name != "white" and len(rows):
            heights[name] = len(set(rows))
    answers = dict(questions)
    assert answers["Which bar is the tallest?"] == max(heights, key=lambda name: heights[name])
    assert answers["What colour is the shortest bar?"] == min(heights, key=lambda name: heights[name])
    assert answers["How many bars are there?"] == str(len(heights))
    compared = next(question for question in answers if question.startswith("Is the "))
    first, second = re.findall(r"the (\w+) bar", compared)
    assert answers[compared] == ("yes" if heights[first] > heights[second] else "no")


@pytest.mark.parametrize("kind", ["reading", "two_lines"])
def test_text_is_inside_the_picture_and_its_colour_is_named(kind: str) -> None:
    for seed in SEEDS:
        image, questions = render(kind, seed, WORDS)
        answers = dict(questions)
        if kind == "reading":
            pixels = np.asarray(image).astype(int)
            ink = COLOURS[answers["What colour is the text?"]]
            found = (pixels == np.array(ink)).all(-1)
            assert found.sum() > 10
            rows, columns = np.nonzero(found)
            assert 0 < rows.min() <= rows.max() < 223
            assert 0 < columns.min() <= columns.max() < 223
        else:
            assert answers.keys() == {"What is written at the top?", "What is written at the bottom?"}


def test_text_comes_from_the_words() -> None:
    texts = [render("reading", seed, WORDS)[1][0][1] for seed in range(80)]
    words = [text.lower() for text in texts if text.lower() in WORDS.words]
    assert len(words) > 30
    assert all(re.fullmatch(r"[A-Z]{1,4}|\d{1,5}", text) for text in texts if text.lower() not in WORDS.words)


def test_fonts_are_used(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot open resource"):
        Supplies(("a",), fonts=(tmp_path / "none.ttf",)).font(random.Random(0), 12)
    assert Supplies(("a",)).font(random.Random(0), 12)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_cover_their_middle_and_stay_in_their_circle(shape: str) -> None:
    canvas = Image.new("RGB", (100, 100), "white")
    draw_shape(canvas, Placed(shape, "blue", 50, 50, 30, 0.0, 4))
    inside = np.asarray(canvas).sum(-1) < 600
    rows, columns = np.nonzero(inside)
    assert inside[50, 50]
    distance = np.hypot(rows - 50, columns - 50)
    assert 20 < distance.max() <= 30 * 1.3 + 2
    assert 0.1 < inside.sum() / (60 * 60) < 1


@pytest.mark.parametrize(("one", "many"), [("circle", "circles"), ("cross", "crosses"), ("star", "stars")])
def test_plural(one: str, many: str) -> None:
    assert plural(one) == many
