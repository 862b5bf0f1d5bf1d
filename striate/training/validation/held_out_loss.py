"""What a training measures on held-out samples, with pictures and without: the answer loss, and answers got right."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from striate.data.checks.broken_samples import usable
from striate.data.collate import Collator
from striate.data.packing import Batch
from striate.data.samples import Sample
from striate.models.interventions.eval_mode import evaluating
from striate.training.batching.order import SeededOrder
from striate.training.batching.prefetch import encoded_ahead
from striate.training.distributed.ranks import Ranks
from striate.training.distributed.sharding import reshard
from striate.training.inputs.step_inputs import StepInputs
from striate.training.loss import answer_tally

KINDS = ("visual", "text")
# Batches of few samples are encoded once; those of many are encoded again for each measurement.
KEPT_BYTES = 2**30
LOSS, EXACT = "loss", "exact_match"


class HeldOutLoss:
    """Measures held-out samples: their answer loss, and how many answers are right; training does not follow from it.

    Attributes:
        samples: those that can be used.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        collator: Collator,
        *,
        batch_size: int,
        workers: int = 0,
        ranks: Ranks | None = None,
    ) -> None:
        """Divide the samples into batches, and the batches among the processes; encode this one's.

        Args:
            samples: with pictures or without.
            collator: encodes them.
            batch_size: the most samples of a batch.
            workers: processes that encode samples.
            ranks: of this process. All of them run as many batches of each kind, as sharded weights need it.

        Raises:
            DataError: a sample can't be used, and none is to be left out; or none can be.
        """
        self.samples = usable(collator, samples)
        self._collator, self._workers, self._ranks = collator, workers, ranks or Ranks()
        self._plan = list(self._planned(batch_size))
        self._kept: list[Batch] = []
        room = KEPT_BYTES
        with torch.random.fork_rng(devices=[]):
            for batch in self._encoded(0):
                room -= sum(tensor.nbytes for tensor in batch.values())
                if room > 0:
                    self._kept.append(batch)

    @property
    def counts(self) -> tuple[int, int]:
        """How many samples have a picture, and how many have none."""
        pictured = sum(bool(sample.images) for sample in self.samples)
        return pictured, len(self.samples) - pictured

    def measure(self, model: nn.Module, inputs: StepInputs, mixed: AbstractContextManager[Any]) -> dict[str, float]:
        """Return `loss` in nats a token and `exact_match` from 0 to 1, each also of a kind, and `seconds`.

        `visual_loss` and `visual_exact_match` are of samples with pictures, `text_loss` and `text_exact_match` of those
        without, where there are any. An answer matches if greedy decoding would write it, token by token. All processes
        must ask. No gradient, mode or random number is changed.

        Args:
            model: as it trains.
            inputs: what happens to a batch before the model takes it.
            mixed: the context in which the model computes.
        """
        begin = time.perf_counter()
        device = next(model.parameters()).device
        sums = torch.zeros(len(KINDS), 4, dtype=torch.float64, device=device)
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), evaluating(model), torch.no_grad(), mixed:
            for (kind, _, counts), batch in zip(self._plan, self._batches(), strict=True):
                with inputs.on_device(batch) as ready:
                    tally = answer_tally(model, ready)
                if counts:
                    sums[kind] += tally
            reshard(model)
        measured = _means(self._ranks.total(sums).tolist())
        return {**measured, "seconds": time.perf_counter() - begin}

    def _planned(self, batch_size: int) -> Iterator[tuple[int, list[Sample], bool]]:
        """Yield this process's batches: their kind, their samples, and whether they count.

        Where batches of a kind can't be dealt evenly, some processes repeat one that another counts.
        """
        order = SeededOrder(self.samples, 0, 1)
        for kind, pictured in enumerate((True, False)):
            chosen = [index for index in order.by_size() if bool(self.samples[index].images) is pictured]
            batches = [
                [self.samples[index] for index in chosen[first : first + batch_size]]
                for first in range(0, len(chosen), batch_size)
            ]
            for first in range(0, len(batches), self._ranks.world_size):
                place = first + self._ranks.rank
                yield kind, batches[min(place, len(batches) - 1)], place < len(batches)

    def _batches(self) -> Iterator[Batch]:
        """Yield this process's batches: those that were kept, then the others, encoded again."""
        yield from self._kept
        yield from self._encoded(len(self._kept))

    def _encoded(self, first: int) -> Iterator[Batch]:
        """Yield this process's batches from number `first` on, encoded."""
        groups = [samples for _, samples, _ in self._plan[first:]]
        encoded = encoded_ahead([sample for group in groups for sample in group], self._collator, self._workers)
        for group in groups:
            yield self._collator.join([next(encoded) for _ in group])


def _means(sums: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return what is measured by name, of each kind's `training.loss.answer_tally`."""
    whole = [sum(column) for column in zip(*sums, strict=True)]
    named = [("", whole), *((f"{kind}_", own) for kind, own in zip(KINDS, sums, strict=True))]
    losses = {f"{kind}{LOSS}": loss / tokens for kind, (loss, tokens, _, _) in named if tokens}
    return {**losses, **{f"{kind}{EXACT}": right / answers for kind, (_, _, right, answers) in named if answers}}
