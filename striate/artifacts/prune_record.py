"""Which decoder layers pruning removed (`prune.json`), and the proof that the result reloads."""

from typing import Literal

from striate.artifacts.base import Document
from striate.artifacts.region import Region


class SelfTest(Document):
    """A saved model, reloaded from disk, against the one in memory."""

    prompts: int
    max_logit_difference: float
    cached_equals_uncached: bool


class PruneRecord(Document):
    """Which layers went, where the others are now, and the proof that the result reloads (`prune.json`)."""

    version: Literal[1] = 1
    region: Region
    scorer: str
    kept: tuple[int, ...]
    removed: tuple[int, ...]
    old_to_new: dict[int, int]
    parameters_before: int
    parameters_after: int
    self_test: SelfTest | None = None
    seconds: float = 0.0
