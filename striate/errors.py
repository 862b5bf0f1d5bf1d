"""Errors a person can cause, and fix: each says what was given, what is allowed, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from striate.printable import clipped, printable

MOST_PROBLEMS, LONGEST_ALLOWED = 30, 1500
_LONGEST_NAME = 100


class StriateError(Exception):
    """Base of every error that striate raises for user input; the command line prints it without a traceback."""

    def __init__(self, given: str, allowed: str = "", next_step: str = "") -> None:
        """Keep the three parts: `given` (what is wrong), `allowed` (what would be right), `next_step` (what to do)."""
        self.given = given
        self.allowed = allowed
        self.next_step = next_step
        super().__init__(given, allowed, next_step)

    def __str__(self) -> str:
        problems = [clipped(line) for line in self.given.split("\n")]
        lines = problems[:MOST_PROBLEMS]
        if len(problems) > len(lines):
            lines.append(f"... and {len(problems) - len(lines)} more")
        if self.allowed:
            lines.append(f"  allowed: {clipped(self.allowed, LONGEST_ALLOWED)}")
        if self.next_step:
            lines.append(f"  next:    {clipped(self.next_step, LONGEST_ALLOWED)}")
        return printable("\n".join(lines))


class SpecError(StriateError):
    """A region SPEC or a strategy name that can't be read."""


class ConfigError(StriateError):
    """A run config with unknown keys, wrong values, or values that contradict each other."""


class DataError(StriateError):
    """A data file, sample or picture that can't be used."""


class ModelError(StriateError):
    """A model that can't be found, read, or treated as a vision-language model."""


class ArtifactError(StriateError):
    """A run folder or artifact that is missing, damaged, or of another run."""


class TooLongError(DataError):
    """A sample that does not fit into a length limit."""


class TrainingError(StriateError):
    """Training that would not train what was asked, or that diverged."""


class DivergedError(TrainingError):
    """Training whose loss or weights are no longer usable numbers."""


def first_line(error: BaseException) -> str:
    """Return the first line of what another library's `error` says, two if it ends in a colon; else its class."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(line.strip() for line in lines[: 1 + lines[0].endswith(":")])


def did_you_mean(name: str, known: Iterable[str], path: str = "") -> str:
    """Return `"did you mean 'x'? "` for the closest of `known`, `path` before it, or an empty string."""
    close = difflib.get_close_matches(name[:_LONGEST_NAME], list(known), n=1, cutoff=0.6)
    return f"did you mean {path + close[0]!r}? " if close else ""
