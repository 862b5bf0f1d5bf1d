"""The objective of healing: hands every micro-batch its teacher rows, and computes the loss from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from striate.config import HealSection
from striate.data.collate import Collator
from striate.data.encoding import Encoded
from striate.data.label_mask import IGNORED
from striate.data.packing import Batch
from striate.data.samples import Sample
from striate.healing.healing_loss import answer_cross_entropy, answer_terms, state_distance
from striate.healing.teacher_rows import IDS, LOG_PROBS, STATES, TeacherRows
from striate.models.interventions.selected_logits import answer_outputs
from striate.training.batching.label_positions import ANSWERS
from striate.training.loss import Objective, answers_of

ROWS = "teacher_rows"
CE, KL, HIDDEN = "ce", "kl", "hidden"


class RowCollator(Collator):
    """Encodes samples as another collator does, with the number of its teacher row beside every answer token."""

    def __init__(self, plain: Collator, teacher: TeacherRows) -> None:
        """Take the collator, and the rows of all its samples."""
        vars(self).update(vars(plain))
        self._plain, self._teacher = plain, teacher

    def encode_each(self, samples: Sequence[Sample]) -> list[Encoded]:
        """Return the samples, encoded, each with (1, T) row numbers where its labels are."""
        return [self._numbered(*pair) for pair in zip(samples, self._plain.encode_each(samples), strict=True)]

    def _numbered(self, sample: Sample, encoded: Encoded) -> Encoded:
        first, end = self._teacher.span(sample)
        labels = encoded.tokens["labels"]
        places = labels != IGNORED
        # The first token is predicted by none.
        places[:, 0] = False
        rows = torch.full_like(labels, -1)
        rows[places] = torch.arange(first, end)
        return Encoded({**encoded.tokens, ROWS: rows}, encoded.pictures)


class HealingObjective(Objective):
    """ce * cross entropy + kl * KL(teacher || student) + hidden * distance of hidden states, over answer tokens.

    All are means over the answer tokens of the whole accumulated step, as in `training.loss.answer_loss`.
    """

    label = "heal"

    def __init__(self, section: HealSection, teacher: TeacherRows | None) -> None:
        """Take the weights, and the teacher's rows where something is learned of it."""
        self._section, self._teacher = section, teacher
        self._current: dict[str, torch.Tensor] = {}
        self._sums: dict[str, torch.Tensor] = {}

    def collator(self, collator: Collator) -> Collator:
        """Return the collator, with row numbers beside answer tokens."""
        return collator if self._teacher is None else RowCollator(collator, self._teacher)

    def prepared(self, batch: Batch) -> Batch:
        """Return the batch with its teacher rows in place of their numbers."""
        if ROWS not in batch or self._teacher is None:
            return batch
        samples_N, columns_N, labels_N = batch[ANSWERS]
        numbers_N = batch[ROWS][samples_N, columns_N + 1].masked_fill(labels_N == IGNORED, -1)
        rest = {name: value for name, value in batch.items() if name != ROWS}
        return {**rest, **{_entry(part): rows for part, rows in self._teacher.at(numbers_N).items()}}

    @contextmanager
    def serving(self, batch: Batch, on_cpu: Batch) -> Iterator[Batch]:
        """Yield what the model takes; the teacher's rows wait for the loss in the block."""
        entries = {_entry(part): part for part in (LOG_PROBS, IDS, STATES)}
        self._current = {part: batch[name] for name, part in entries.items() if name in batch}
        try:
            yield {name: value for name, value in batch.items() if name not in entries}
        finally:
            self._current = {}

    def loss(
        self, model: nn.Module, inputs: Mapping[str, Any], answer_tokens: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Return the weighed loss of a micro-batch."""
        (rows_N, columns_N, labels_N), rest = answers_of(inputs)
        logits_NV, states_ND = answer_outputs(model, rest, rows_N, columns_N)
        tokens = (labels_N != IGNORED).sum() if answer_tokens is None else answer_tokens
        sums = self._terms(logits_NV.float(), labels_N, states_ND)
        means = {name: total / tokens for name, total in sums.items()}
        for name, mean in means.items():
            self._sums[name] = self._sums.get(name, 0) + mean.detach()
        weights = {CE: self._section.ce, KL: self._section.kl, HIDDEN: self._section.hidden}
        weighed = [weights[name] * mean for name, mean in means.items() if weights[name]]
        return torch.stack(weighed).sum()

    def take_parts(self) -> dict[str, torch.Tensor]:
        """Return the three parts of the loss of the step, not weighed."""
        taken, self._sums = self._sums, {}
        return taken

    def _terms(
        self, logits_NV: torch.Tensor, labels_N: torch.Tensor, states_ND: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Return each part of the loss, summed over answer tokens."""
        teacher = self._current
        if self._section.kl:
            terms = answer_terms(logits_NV, labels_N, teacher[LOG_PROBS], teacher[IDS].long())
            sums = dict(zip((CE, KL), terms, strict=True))
        else:
            sums = {CE: answer_cross_entropy(logits_NV, labels_N)}
        if self._section.hidden and states_ND is not None:
            sums[HIDDEN] = state_distance(states_ND, teacher[STATES], labels_N)
        return sums


def _entry(part: str) -> str:
    return f"teacher_{part}"
