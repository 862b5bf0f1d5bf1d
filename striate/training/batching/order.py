"""The order in which samples are learned: from the seed and the epoch, with little padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch.utils.data import Sampler

from striate.data.samples import Sample
from striate.data.store.sample_columns import SampleColumns


class SeededOrder(Sampler[int]):
    """A new permutation of the samples every epoch, the same for every model, region and machine.

    Random states elsewhere (dropout, the first values of adapters) neither change it nor are changed by it. Within
    one optimizer step samples go from short to long, so that its micro-batches hold little padding; the loss is a sum
    over the step's tokens, which that order leaves as it is.
    """

    def __init__(self, samples: Sequence[Sample], seed: int, batch_size: int) -> None:
        """Keep `samples`, their lengths, the seed, and the number of samples of one optimizer step."""
        self.samples = samples
        columns = SampleColumns.of(samples)
        self.lengths, self.pictures = columns.lengths.tolist(), columns.pictures.tolist()
        self.seed = seed
        self.batch_size = batch_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of `epoch`."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self), generator=generator).tolist()
        for first in range(0, len(order), self.batch_size):
            # Pictures first: their tokens outnumber those of most texts.
            yield from sorted(order[first : first + self.batch_size], key=self._size)

    def __len__(self) -> int:
        return len(self.lengths)

    def by_size(self) -> list[int]:
        """Return all samples from short to long."""
        return sorted(range(len(self)), key=self._size)

    def learned(self, steps: int) -> list[int]:
        """Return the samples that the first `steps` steps learn from."""
        if steps * self.batch_size >= len(self):
            return list(range(len(self)))
        return list(SeededOrder(self.samples, self.seed, self.batch_size))[: steps * self.batch_size]

    def times_learned(self, steps: int) -> list[int]:
        """Return for each sample how many of the first `steps` steps learn from it; epochs are counted from 0."""
        epochs, rest = divmod(steps, -(-len(self) // self.batch_size))
        times = [epochs] * len(self)
        last = SeededOrder(self.samples, self.seed, self.batch_size)
        last.set_epoch(epochs)
        for index in islice(last, rest * self.batch_size):
            times[index] += 1
        return times

    def _size(self, index: int) -> tuple[int, int, int]:
        """Return what samples are sorted by; the index makes ties certain."""
        return self.pictures[index], self.lengths[index], index
