"""Errors say what was given, what is allowed and what to do next."""

from __future__ import annotations

import pickle

import pytest

from striate import errors
from striate.errors import StriateError, did_you_mean, first_line

KINDS = [
    errors.SpecError,
    errors.ConfigError,
    errors.DataError,
    errors.ModelError,
    errors.ArtifactError,
    errors.TrainingError,
]


@pytest.mark.parametrize("kind", KINDS)
def test_three_parts(kind: type[StriateError]) -> None:
    error = kind("what is wrong", "what is right", "what to do")
    assert isinstance(error, StriateError)
    assert str(error) == "what is wrong\n  allowed: what is right\n  next:    what to do"
    assert (error.given, error.allowed, error.next_step) == ("what is wrong", "what is right", "what to do")


@pytest.mark.parametrize(
    ("parts", "text"),
    [(("a",), "a"), (("a", "b"), "a\n  allowed: b"), (("a", "", "c"), "a\n  next:    c")],
)
def test_empty_parts_are_left_out(parts: tuple[str, ...], text: str) -> None:
    assert str(StriateError(*parts)) == text


def test_survives_a_process_border() -> None:
    error = errors.DataError("a", "b", "c")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is errors.DataError
    assert str(copy) == str(error)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("unifrom", "did you mean 'uniform'? "), ("xyz", ""), ("uniform", "did you mean 'uniform'? "), ("", "")],
)
def test_did_you_mean(name: str, hint: str) -> None:
    assert did_you_mean(name, ["uniform", "bottom"]) == hint


def test_first_line_of_an_error_without_a_text_is_its_class() -> None:
    assert first_line(ValueError("first\nsecond")) == "first"
    assert first_line(RuntimeError()) == "RuntimeError"
