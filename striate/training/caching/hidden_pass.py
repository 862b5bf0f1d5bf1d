"""One pass of a training set through the frozen layers: samples of like lengths together, states to a store."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from striate.config import MachineSection
from striate.data.collate import Collator
from striate.data.encoding import Encoded
from striate.data.samples import Sample
from striate.models.interventions.hidden_state_tap import HiddenTap, without_pictures
from striate.progress import Progress
from striate.training.batching.prefetch import encoded_ahead
from striate.training.caching.tensor_store import HIDDEN_STATES, DiskWriter, check_room
from striate.training.caching.token_store import save_items
from striate.training.numerical_agreement import moved

# Of a batch's slots, at most this share is padding; and so many samples are encoded to forecast the size of all.
_PADDING, _FORECAST = 0.125, 64
Add = Callable[[str, torch.Tensor], None]
Entry = tuple[int, Encoded]


class HiddenMaker:
    """Goes once over a training set: encodes every sample, and runs the model up to one layer.

    Attributes:
        samples: the training set, each sample once; their places are the keys of their states.
    """

    def __init__(
        self,
        tap: HiddenTap,
        samples: Sequence[Sample],
        collator: Collator,
        machine: MachineSection,
        packing: bool,
        half: torch.dtype | None,
        width: int,
        progress: Progress,
    ) -> None:
        """Keep what the pass needs.

        Args:
            tap: of the model, at the layer.
            samples: the training set.
            collator: encodes and joins samples.
            machine: how much goes through the model together, and how many workers read pictures.
            packing: whether `pack_tokens` says how much that is, and not `micro_batch`.
            half: the number format to keep, if not float32.
            width: numbers of a hidden state.
            progress: where to show it.
        """
        self.samples = list(dict.fromkeys(samples))
        self._tap, self._collator, self._machine, self._packing = tap, collator, machine, packing
        self._dtype, self._width, self._progress = half or torch.float32, width, progress

    def run(self, add: Add, folder: Path | None) -> list[Encoded]:
        """Return the encoded samples without pixels, in order; their states (T, D) go to `add`.

        Raises:
            ArtifactError: there is no room for them in memory, or on the disk of `folder`.
        """
        self._check_room(folder)
        order = sorted(range(len(self.samples)), key=self._size, reverse=True)
        items: dict[int, Encoded] = {}
        entries = [(index, self.samples[index]) for index in order]
        ahead = encoded_ahead(entries, _Preparer(self._collator), self._machine.workers)
        with self._progress.track("hidden states", len(order)) as advance:
            for group in self._groups(ahead):
                for (index, item), states in zip(group, self._states([item for _, item in group]), strict=True):
                    add(str(index), states)
                    tokens = (1, item.length)
                    items[index] = Encoded(item.tokens, without_pictures(item.pictures, tokens)).owned()
                advance(len(group))
        return [items[index] for index in range(len(order))]

    def write(self, writer: DiskWriter) -> None:
        """Write states and samples to the writer's folder."""
        save_items(writer.folder, self.run(writer.add, writer.folder))

    def _states(self, items: list[Encoded]) -> list[torch.Tensor]:
        """Return the states (T, D) of each sample, on the CPU, in the number format that is kept."""
        device = next(self._tap.model.parameters()).device
        batch = moved(self._collator.join(items), device)
        batch.pop("labels", None)
        states_BTD = self._tap.states(batch).to(self._dtype).cpu()
        return [states[: item.length] for states, item in zip(states_BTD, items, strict=True)]

    def _groups(self, entries: Iterable[Entry]) -> Iterator[list[Entry]]:
        """Yield samples that go through the model together: few enough, and of like lengths."""
        group: list[Entry] = []
        for entry in entries:
            lengths = [item.length for _, item in (*group, entry)]
            slots = len(lengths) * max(lengths)
            full = slots > self._machine.pack_tokens if self._packing else len(lengths) > self._machine.micro_batch
            if group and (full or slots - sum(lengths) > _PADDING * slots):
                yield group
                group = []
            group.append(entry)
        if group:
            yield group

    def _check_room(self, folder: Path | None) -> None:
        """Say how large all will be, from samples of all lengths, and check that there is room."""
        order = sorted(range(len(self.samples)), key=self._size)
        count = min(_FORECAST, len(order))
        spread = [self.samples[order[(2 * place + 1) * len(order) // (2 * count)]] for place in range(count)]
        tokens = sum(item.length for item in self._collator.encode_each(spread)) / count
        size = math.ceil(len(order) * tokens * self._width * self._dtype.itemsize)
        place = str(folder.parent) if folder else "memory"
        self._progress.say(
            f"hidden states before layer {self._tap.layer} of {len(order)} samples: about {size / 2**30:.2f} GiB in"
            f" {place}, {tokens:.0f} tokens a sample, {str(self._dtype).removeprefix('torch.')}"
        )
        check_room(size, folder, HIDDEN_STATES)

    def _size(self, index: int) -> tuple[int, int, int]:
        """Return what samples are sorted by: pictures first, whose tokens outnumber those of most texts."""
        sample = self.samples[index]
        return len(sample.images), sum(len(message.text) for message in sample.messages), index


class _Preparer:
    """Encodes one sample in a worker."""

    def __init__(self, collator: Collator) -> None:
        """Keep the collator."""
        self._collator = collator

    def __call__(self, entry: tuple[int, Sample]) -> Entry:
        """Return the sample's place, and the sample, encoded."""
        index, sample = entry
        return index, self._collator.encode_each([sample])[0]
