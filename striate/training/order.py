"""The order in which samples are learned: from the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class SeededOrder(Sampler[int]):
    """A new permutation of the samples every epoch, the same for every model, region and machine.

    Random states elsewhere (dropout, the first values of adapters) neither change it nor are changed by it.
    """

    def __init__(self, size: int, seed: int) -> None:
        """Keep the number of samples and the seed."""
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of `epoch`."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(torch.randperm(self.size, generator=generator).tolist())

    def __len__(self) -> int:
        return self.size
