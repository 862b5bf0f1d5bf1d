"""Run work in collated batches that are halved when memory runs out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from striate.data.samples import Sample
from striate.errors import ModelError
from striate.progress import Advance


class Named(Protocol):
    """What errors can name."""

    @property
    def id(self) -> str:
        """Its name."""


Item = TypeVar("Item", bound=Named)
Batch = TypeVar("Batch")
Result = TypeVar("Result")


@dataclass
class Batches(Generic[Item, Batch]):
    """Samples in the order in which they run, how they become a batch, and how many at a time.

    Attributes:
        samples: the calibration set, best sorted so that neighbours are of like length, longest first.
        collate: makes a training batch with labels.
        size: samples in one batch; halved for good when the device has too little memory.
    """

    samples: Sequence[Item]
    collate: Callable[[Sequence[Item]], Batch]
    size: int

    def each(self, work: Callable[[Batch], Result], advance: Advance) -> list[Result]:
        """Return what `work` makes of every batch, in order; `advance` is called with the number of samples done.

        Raises:
            ModelError: one sample alone does not fit into the device's memory.
        """
        results: list[Result] = []
        start = 0
        while start < len(self.samples):
            part = self.samples[start : start + self.size]
            result = self._attempt(work, part)
            if result is None:
                self._shrink(len(part), part[0].id)
                continue
            results.append(result[0])
            start += len(part)
            advance(len(part))
        return results

    def _attempt(self, work: Callable[[Batch], Result], part: Sequence[Item]) -> tuple[Result] | None:
        """Return what `work` makes of `part`, or None if memory ran out; nothing of the attempt stays alive then."""
        batch = self.collate(part)
        try:
            return (work(batch),)
        except torch.OutOfMemoryError:
            return None

    def _shrink(self, tried: int, sample: str) -> None:
        if tried == 1:
            raise ModelError(
                f"sample {sample!r} alone does not fit into the device's memory",
                "a device with room for the model and one sample",
                "use a larger device, machine.dtype bfloat16, smaller pictures, or a smaller max_length",
            )
        self.size = -(-tried // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def longest_first(samples: Sequence[Sample]) -> list[int]:
    """Return an order of samples with little padding, in which a lack of memory shows at once."""
    return sorted(
        range(len(samples)),
        key=lambda index: (len(samples[index].images), sum(len(turn.text) for turn in samples[index].messages)),
        reverse=True,
    )
