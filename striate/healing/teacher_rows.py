"""What the tuned model (the teacher) said of every answer token of a training set, found by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from striate.data.samples import Sample

COUNTS = "counts"
# Parts of what is kept of n answer tokens: log-probabilities (n, K + 1) of the K likeliest tokens and of all others
# together, those K tokens (n, K), and hidden states after the final norm (n, D).
LOG_PROBS, IDS, STATES = "log_probs", "ids", "states"


def part_name(number: int, part: str) -> str:
    """Return the name under which a part of sample `number` is kept."""
    return f"{number} {part}"


class TeacherRows:
    """The rows of a training set, one an answer token, numbered through all samples in their order.

    Attributes:
        digest: names what the rows follow from; empty for rows in memory.
    """

    def __init__(self, samples: Sequence[Sample], tensors: Mapping[str, torch.Tensor], digest: str = "") -> None:
        """Take the samples, each once, and what is kept of them by `part_name`; COUNTS are the rows of each."""
        self._tensors, self.digest = tensors, digest
        counts = tensors[COUNTS]
        self._starts = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
        # A broken sample has no rows.
        asked = int(counts.argmax())
        kinds = {part: tensors.get(part_name(asked, part)) for part in (LOG_PROBS, IDS, STATES)}
        self._empty = {part: rows[:0] for part, rows in kinds.items() if rows is not None}
        self._numbers = {sample: number for number, sample in enumerate(samples)}

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
        """Return each part of the rows of these numbers, in this order; those below 0 hold zeros."""
        found = {part: rows.new_zeros(len(rows_N), rows.shape[1]) for part, rows in self._empty.items()}
        samples_N = torch.searchsorted(self._starts, rows_N, right=True) - 1
        for number in samples_N[samples_N >= 0].unique().tolist():
            here_N = samples_N == number
            for part, rows in found.items():
                rows[here_N] = self._tensors[part_name(number, part)][rows_N[here_N] - self._starts[number]]
        return found
