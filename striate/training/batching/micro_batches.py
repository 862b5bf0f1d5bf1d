"""What one optimizer step is made of: a process's share of its samples, in micro-batches or packed rows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.utils.data import Dataset, Sampler

from striate.config import MachineSection, TrainSection
from striate.data.checks.broken_samples import encode_usable, usable
from striate.data.collate import Collator
from striate.data.encoding import Encoded
from striate.data.label_mask import IGNORED
from striate.data.packing import FILLER, Batch, even_rows
from striate.data.samples import Sample
from striate.data.store.sample_columns import SampleColumns
from striate.errors import DataError
from striate.training.batching.order import SeededOrder
from striate.training.distributed.ranks import Ranks
from striate.training.distributed.sharding import sharding

Touch = Literal["", "last", "all"]
BROKEN = "broken"
# So many that one of them can be used, whatever is broken.
_STAND_INS = 16


@dataclass(frozen=True)
class Share:
    """Which samples of a step one of several processes learns from, and how many go into one forward pass.

    All processes together learn from exactly the samples that one process would, in the same step.

    Attributes:
        micro_batch: samples of a padded micro-batch.
        pack_tokens: the most tokens of a packed row; None for padded micro-batches.
        rank: of this process, from 0.
        world_size: how many processes there are.
    """

    micro_batch: int
    pack_tokens: int | None = None
    rank: int = 0
    world_size: int = 1

    def of(self, step: Sequence[int]) -> list[int]:
        """Return this process's samples of a step, which go from short to long: whole micro-batches, dealt in turn."""
        if self.pack_tokens is not None:
            return list(step[self.rank :: self.world_size])
        firsts = range(self.rank * self.micro_batch, len(step), self.world_size * self.micro_batch)
        return [index for first in firsts for index in step[first : first + self.micro_batch]]


class NumberedSamples(Dataset[tuple[int, Sample]]):
    """Samples with their numbers: several sources may have samples of one id."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        """Keep the samples, in the order of their numbers."""
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[int, Sample]:
        return index, self._samples[index]


class StepSampler(Sampler[list[int]]):
    """Yields a process's share of every step of an epoch; an epoch's last step takes what is left."""

    def __init__(self, order: SeededOrder, share: Share) -> None:
        """Deal the steps of `order` by `share`."""
        self.order = order
        self.share = share

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of `epoch`."""
        self.order.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        indices = list(self.order)
        size = self.order.batch_size
        return (self.share.of(indices[first : first + size]) for first in range(0, len(indices), size))

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.order.batch_size)


class StepCollator:
    """Turns a share of a step into its micro-batches: padded ones in the order given, or packed rows.

    Processes that wait for each other's modules must use the same ones. Where a share's batches lack pictures, a
    sample with a small picture and without labels joins them (`touch`): it adds nothing to loss or gradients.
    """

    def __init__(
        self, collator: Collator, share: Share, stand_ins: Sequence[Sample] = (), touch: Touch = "", fill: int = 1
    ) -> None:
        """Keep how to encode and how to divide.

        Args:
            collator: encodes samples, joins and packs them.
            share: of this process.
            stand_ins: the first one that can be used joins batches without pictures.
            touch: which batches need a picture: none, the last of a step, or all.
            fill: packed rows are filled up to a multiple of this many tokens.
        """
        self.collator = collator
        self.share = share
        self._stand_ins = stand_ins
        self._touch = touch if stand_ins else ""
        self._unlabelled: Encoded | None = None
        self._fill = fill

    def __call__(self, samples: Sequence[tuple[int, Sample]]) -> list[Batch] | DataError:
        """Return the micro-batches of numbered samples, at least one, or the error for one that can't be used.

        Raised in a worker process, an error would arrive as its traceback.
        """
        try:
            items, broken = encode_usable(self.collator, [sample for _, sample in samples])
            groups = self.grouped(items) or [[]]
            batches = [self._join(self._touched(group, index + 1 == len(groups))) for index, group in enumerate(groups)]
        except DataError as error:
            return error
        if broken:
            numbered = {samples[place][0]: why for place, why in broken.items()}
            batches[0][BROKEN] = torch.frombuffer(bytearray(json.dumps(numbered).encode()), dtype=torch.uint8)
        return batches

    def grouped(self, items: Sequence[Encoded]) -> list[list[Encoded]]:
        """Return the items of each micro-batch or row."""
        if self.share.pack_tokens is None:
            size = self.share.micro_batch
            return [list(items[first : first + size]) for first in range(0, len(items), size)]
        rows = even_rows([item.length for item in items], self.share.pack_tokens)
        return [[items[index] for index in row] for row in rows]

    def empty(self) -> Batch:
        """Return a batch of the stand-in alone: it uses every module, and teaches nothing."""
        return self._join([self._without_labels()])

    def _touched(self, group: list[Encoded], last: bool) -> list[Encoded]:
        """Return the group, with the stand-in where it is needed."""
        wanted = self._touch == "all" or (self._touch == "last" and last)
        pictured = any(item.pictures for item in group)
        return [*group, self._without_labels()] if not group or (wanted and not pictured) else group

    def _without_labels(self) -> Encoded:
        """Return the stand-in, encoded once, with no answer to learn from."""
        if self._unlabelled is None:
            if not self._stand_ins:
                raise ValueError("a step without samples needs a stand-in")
            [item] = self.collator.encode_each(usable(self.collator, self._stand_ins)[:1])
            labels = item.tokens["labels"].clone().fill_(IGNORED)
            self._unlabelled = Encoded({**item.tokens, "labels": labels}, item.pictures)
        return self._unlabelled

    def _join(self, items: Sequence[Encoded]) -> Batch:
        """Return the items as one batch; tokens of the stand-in only fill it."""
        batch = self.collator.join(items) if self.share.pack_tokens is None else self.collator.pack(items, self._fill)
        added = sum(item.length for item in items if item is self._unlabelled)
        return {**batch, FILLER: batch.get(FILLER, torch.tensor(0)) + added} if added else batch


def broken_of(batch: Batch) -> dict[int, str]:
    """Return which samples were left out of the step of a batch that tells (`BROKEN`), and why, by their numbers."""
    broken: dict[str, str] = json.loads(batch[BROKEN].numpy().tobytes())
    return {int(number): why for number, why in broken.items()}


def stand_ins(samples: Sequence[Sample]) -> list[Sample]:
    """Return samples with the fewest pictures, but one, and the shortest texts; any short ones if none has any."""
    return [samples[index] for index in SampleColumns.of(samples).smallest(_STAND_INS)]


def share_of(ranks: Ranks, micro_batch: int, config: TrainSection, machine: MachineSection) -> Share:
    """Return which samples of a step are this rank's, and how they are batched."""
    return Share(micro_batch, machine.pack_tokens if config.packing else None, ranks.rank, ranks.world_size)


def touch_of(ranks: Ranks, config: TrainSection, samples: Sequence[Sample], layers: int) -> Touch:
    """Return which batches must have a picture, where so many layers of the LLM train.

    Where none does, the loss of a batch without one reaches nothing that trains. Ranks that average gradients (DDP)
    must all have those of projector and vision encoder by then; those that share weights (FSDP2, ZeRO-3) must run
    the same modules in every batch.
    """
    if not SampleColumns.of(samples).pictures.any() or (ranks.world_size == 1 and layers):
        return ""
    if not layers or sharding():
        return "all"
    return "last" if config.before_decoder else ""
