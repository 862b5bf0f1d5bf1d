"""Which decoder layers were pruned (`prune.json`), and the check that the saved model reloads."""

from typing import Literal

from striate.artifacts.base import Document
from striate.artifacts.region import Region


class SelfTest(Document):
    """A saved model, reloaded from disk, against the one in memory."""

    prompts: int
    max_logit_difference: float
    cached_equals_uncached: bool


class PruneRecord(Document):
    """Removed layers, the new index of each kept one, and the check that the saved model reloads (`prune.json`)."""

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
