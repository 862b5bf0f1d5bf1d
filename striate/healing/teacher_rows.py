"""What the tuned model (the teacher) said of every answer token of a training set, found by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from striate.data.samples import Sample

COUNTS = "counts"
# Parts of what is kept of n answer tokens: log-probabilities (n, K + 1) of the K likeliest tokens and of all others
# together, those K tokens (n, K), and hidden states after the final norm (n, D).
LOG_PROBS, IDS, STATES = "log_probs", "ids", "states"
# Rows of so many bytes are held in memory, joined: others are read where they lie, sample by sample.
_IN_MEMORY = 4 * 2**30


def part_name(number: int, part: str) -> str:
    """Return the name under which a part of sample `number` is kept."""
    return f"{number} {part}"


class TeacherRows:
    """The rows of a training set, one an answer token, numbered through all samples in their order.

    Attributes:
        digest: names what the rows follow from; empty for rows that were never stored.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        tensors: Mapping[str, torch.Tensor],
        digest: str = "",
        most_bytes: int = _IN_MEMORY,
    ) -> None:
        """Take the samples, each once, and what is kept of them by `part_name`; COUNTS are the rows of each.

        Up to `most_bytes` of rows are held in memory.
        """
        self._tensors, self.digest = tensors, digest
        counts = tensors[COUNTS]
        self._starts = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
        self._numbers = {sample: number for number, sample in enumerate(samples)}
        # A broken sample has no rows.
        asked = counts.nonzero().flatten().tolist()
        kinds = {part: tensors.get(part_name(asked[0], part)) for part in (LOG_PROBS, IDS, STATES)}
        self._empty = {part: rows[:0] for part, rows in kinds.items() if rows is not None}
        row_bytes = sum(rows.shape[1] * rows.element_size() for rows in self._empty.values())
        self._joined: dict[str, torch.Tensor] = {}
        if row_bytes * len(self) <= most_bytes:
            self._joined = {
                part: torch.cat([tensors[part_name(number, part)] for number in asked]) for part in self._empty
            }

    def __len__(self) -> int:
        return int(self._starts[-1])

    def span(self, sample: Sample) -> tuple[int, int]:
        """Return the first row of a sample, and the one after its last.

        Raises:
            KeyError: the teacher was not asked for it.
        """
        number = self._numbers[sample]
        return int(self._starts[number]), int(self._starts[number + 1])

    def at(self, rows_N: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return each part of the rows of these numbers, in this order; those below 0 hold anything that is finite."""
        rows_N = rows_N.clamp(min=0)
        if self._joined:
            return {part: rows[rows_N] for part, rows in self._joined.items()}
        numbers_N = torch.searchsorted(self._starts, rows_N, right=True) - 1
        numbers, counts = numbers_N.unique_consecutive(return_counts=True)
        runs = list(zip(numbers.tolist(), (rows_N - self._starts[numbers_N]).split(counts.tolist()), strict=True))
        return {
            part: torch.cat([empty, *(self._tensors[part_name(number, part)][local] for number, local in runs)])
            for part, empty in self._empty.items()
        }
