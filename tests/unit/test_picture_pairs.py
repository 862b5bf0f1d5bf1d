from __future__ import annotations

import re

import numpy as np
import pytest

from striate.data.picture_pairs import ATTRIBUTES, PicturePair, picture_pair
from striate.data.shapes import COLOURS, SHAPES

SEEDS = range(24)


def pairs(attribute: str) -> list[PicturePair]:
    return [picture_pair(attribute, seed) for seed in SEEDS]


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_pictures_are_alike_but_for_one_thing(attribute: str) -> None:
    for pair in pairs(attribute):
        first, second = (np.asarray(picture).astype(int) for picture in pair.pictures)
        assert first.shape == second.shape == (224, 224, 3)
        differing = (np.abs(first - second).max(-1) > 0).mean()
        assert 0 < differing < 0.25
        assert pair.attribute == attribute
        assert pair.answers[0] != pair.answers[1]
        assert not any(answer in pair.question.split() for answer in pair.answers)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_a_pair_follows_from_its_seed(attribute: str) -> None:
    for seed in range(4):
        one, again = picture_pair(attribute, seed), picture_pair(attribute, seed)
        assert (one.question, one.answers) == (again.question, again.answers)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(one.pictures, again.pictures, strict=True))
    looks = {pair.pictures[0].tobytes() for pair in pairs(attribute)}
    assert len(looks) == len(SEEDS)


def test_answers_are_of_their_kind() -> None:
    for pair in pairs("colour"):
        assert set(pair.answers) <= set(COLOURS)
    for pair in pairs("shape"):
        assert set(pair.answers) <= set(SHAPES)
    for pair in pairs("count"):
        assert all(re.fullmatch("[1-6]", answer) for answer in pair.answers)
    for pair in pairs("position"):
        assert all(answer == "centre" or len(answer.split()) == 2 for answer in pair.answers)


def test_the_larger_count_keeps_the_shapes_of_the_smaller_one() -> None:
    for pair in pairs("count"):
        smaller, larger = sorted(zip(pair.answers, pair.pictures, strict=True), key=lambda row: int(row[0]))
        few, many = (np.asarray(picture).astype(int) for picture in (smaller[1], larger[1]))
        drawn = np.abs(few - np.median(few, (0, 1))).max(-1) > 40
        assert drawn.any()
        assert (np.abs(few - many).max(-1)[drawn] == 0).all()


def test_the_colour_asked_about_is_in_the_picture() -> None:
    for pair in pairs("colour"):
        for picture, answer in zip(pair.pictures, pair.answers, strict=True):
            apart = np.abs(np.asarray(picture).astype(int) - COLOURS[answer]).max(-1)
            assert (apart <= 14).mean() > 0.005


def test_size_is_a_choice() -> None:
    assert picture_pair("word", 0, side=96).pictures[1].size == (96, 96)
