"""Progress of long work: stages report to a `Progress`, the command line shows it, libraries stay silent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Protocol, runtime_checkable

Advance = Callable[[int], None]


class Progress(Protocol):
    """Where long work says how far it is."""

    def track(self, label: str, total: int) -> AbstractContextManager[Advance]:
        """Return a context whose value, called with n, moves the bar called `label` on by n of `total`."""

    def say(self, text: str) -> None:
        """Print one line of what is happening."""


@runtime_checkable
class Noting(Protocol):
    """A `Progress` that can also show a few words beside its bar."""

    def note(self, text: str) -> None:
        """Show `text` beside the bar, in place of what was there."""


@runtime_checkable
class Sized(Protocol):
    """A `Progress` that can also follow bytes, and shows them in units."""

    def track_bytes(self, label: str, total: int) -> AbstractContextManager[Advance]:
        """Return what `track` does, for `total` bytes."""


@runtime_checkable
class Warned(Protocol):
    """A `Progress` that shows warnings also where it is told to be quiet."""

    def warn(self, text: str) -> None:
        """Print one line of what a person should know before trusting the result."""


def track_bytes(progress: Progress, label: str, total: int) -> AbstractContextManager[Advance]:
    """Return what `Progress.track` does, for `total` bytes: with units where `progress` knows them."""
    return (progress.track_bytes if isinstance(progress, Sized) else progress.track)(label, total)


def warn(progress: Progress, text: str) -> None:
    """Say a warning, as such where `progress` tells warnings from what merely happens."""
    (progress.warn if isinstance(progress, Warned) else progress.say)(text)


class Silent:
    """A progress that shows nothing: the default in Python."""

    @contextmanager
    def track(self, label: str, total: int) -> Iterator[Advance]:
        """Yield a function that ignores what it is told."""
        yield lambda count: None

    def say(self, text: str) -> None:
        """Ignore the text."""


FETCHING: ContextVar[Progress | None] = ContextVar("fetching", default=None)
"""The command line's own, for downloads deep down in reading models and data."""


def fetching() -> Progress:
    """Return what is told of a download that nobody handed a progress to."""
    return FETCHING.get() or Silent()
