"""The base class of published benchmarks: a reader of their files, with where they come from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from striate.registry import Strategy
from striate.tasks.benchmarks.formats.release import Release
from striate.tasks.packs.items import Item

ReadFunction = Callable[[Release], Iterator[Item]]
UnpackFunction = Callable[[Release, Sequence[Item]], None]


@dataclass(frozen=True)
class Benchmark(Strategy[ReadFunction]):
    """One registered benchmark; `function` yields its items from a local copy.

    Attributes:
        source: where the files come from, in words.
        layout: the files that the folder holds, as they are published.
        shots: number of few-shot examples before each question, unless the SPEC says otherwise; None where there
            is no place for any.
        unpack: writes the pictures of the given items that lie inside other files to the release's `unpacked` folder;
            None where pictures are files.
    """

    source: str = ""
    layout: tuple[str, ...] = ()
    shots: int | None = None
    unpack: UnpackFunction | None = None
