"""Which decoder layers were pruned (`prune.json`), and the check that the saved model reloads."""

from typing import Literal

from striate.artifacts.base import Document
from striate.artifacts.compensation_record import Compensation
from striate.artifacts.curve_record import UntilRecord
from striate.artifacts.region import Region


class SelfTest(Document):
    """A saved model, reloaded from disk, against the one in memory."""

    prompts: int
    max_logit_difference: float
    cached_equals_uncached: bool


class Cut(Document):
    """One round of a greedy ranking: the layer that went, and what that costs.

    Attributes:
        layer: which.
        before: what an answer token costs, the mean over `visual` and over `text` samples, with all layers left so far.
        after: the same without the layer.
        candidates: the weighed cost without each layer that could have gone.
    """

    layer: int
    before: dict[str, float]
    after: dict[str, float]
    candidates: dict[int, float]


class UnfinishedRanking(Document):
    """The first cuts of a ranking, for one that was interrupted to go on from.

    Attributes:
        key: hash of what they follow from.
        cuts: so far.
    """

    key: str
    cuts: tuple[Cut, ...]


class PruneRecord(Document):
    """Removed layers, the new index of each kept one, and the check that the saved model reloads (`prune.json`).

    Bytes are those of the weights in memory; earlier versions did not record them.
    """

    version: Literal[1] = 1
    region: Region
    scorer: str
    kept: tuple[int, ...]
    removed: tuple[int, ...]
    old_to_new: dict[int, int]
    parameters_before: int
    parameters_after: int
    bytes_before: int = 0
    bytes_after: int = 0
    cuts: tuple[Cut, ...] = ()
    compensation: Compensation | None = None
    until: UntilRecord | None = None
    self_test: SelfTest | None = None
    seconds: float = 0.0
