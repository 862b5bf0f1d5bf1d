"""What training minimises: the language-model loss, computed only where there is an answer, or another objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from striate.data.collate import Collator
from striate.data.label_mask import IGNORED
from striate.models.interventions.selected_logits import answer_logits
from striate.training.batching.label_positions import ANSWERS, label_positions
from striate.training.inputs.step_inputs import StepInput


def answer_loss(
    model: nn.Module, inputs: Mapping[str, Any], answer_tokens: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Return the cross entropy of the next answer token, in nats a token: the loss of a Hugging Face causal LM.

    L = -1/n sum over answer positions t of log p(label_t | tokens before t). The LM head and the float32 softmax see
    only the n positions that predict an answer token, not all B x T; the value and its gradients are the same.

    Args:
        model: an LVLM, plain or wrapped by PEFT.
        inputs: a training batch with `labels` (B, T), -100 where there is no answer, or with `answers`, as
            `label_positions` gives them: looking for them on an accelerator makes the CPU wait for it.
        answer_tokens: n of the whole accumulated batch; None takes that of this batch.
    """
    answers, rest = answers_of(inputs)
    rows_N, columns_N, labels_N = answers
    logits_NV = answer_logits(model, rest, rows_N, columns_N)
    total = cross_entropy(logits_NV.float(), labels_N, reduction="sum", ignore_index=IGNORED)
    return total / ((labels_N != IGNORED).sum() if answer_tokens is None else answer_tokens)


def answer_tally(model: nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Return four sums of a batch (4,), float64: cross entropy in nats, answer tokens, answers got right, answers.

    An answer is right if each of its tokens, the end of the turn too, is the likeliest at its place: it is then what
    greedy decoding writes after the same turns.
    """
    answers, rest = answers_of(inputs)
    rows_N, columns_N, labels_N = answers
    logits_NV = answer_logits(model, rest, rows_N, columns_N).float()
    counts_N = labels_N != IGNORED
    total = cross_entropy(logits_NV, labels_N, reduction="sum", ignore_index=IGNORED)
    wrong_N = (logits_NV.argmax(-1) != labels_N) & counts_N
    begins_N = torch.ones_like(counts_N)
    begins_N[1:] = (rows_N[1:] != rows_N[:-1]) | (columns_N[1:] != columns_N[:-1] + 1)
    answer_N = begins_N.cumsum(0) - 1
    none_N = torch.zeros_like(labels_N)
    tokens_A = none_N.index_add(0, answer_N, counts_N.long())
    wrong_A = none_N.index_add(0, answer_N, wrong_N.long())
    right = ((tokens_A > 0) & (wrong_A == 0)).sum()
    return torch.stack([total.double(), counts_N.sum().double(), right.double(), (tokens_A > 0).sum().double()])


def answers_of(inputs: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return the answers (3, N) of a training batch, as `label_positions` gives them, and what the model takes."""
    answers = inputs[ANSWERS] if ANSWERS in inputs else label_positions(inputs["labels"])
    return answers, {name: value for name, value in inputs.items() if name not in ("labels", ANSWERS)}


class Objective(StepInput):
    """What training minimises: the answer loss. A step input, so that another objective can add to micro-batches.

    Attributes:
        label: what progress calls the training.
    """

    label = "train"

    def collator(self, collator: Collator) -> Collator:
        """Return what encodes the samples of steps in place of `collator`."""
        return collator

    def loss(
        self, model: nn.Module, inputs: Mapping[str, Any], answer_tokens: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Return the loss of a micro-batch, normalised as that of `answer_loss`."""
        return answer_loss(model, inputs, answer_tokens)

    def take_parts(self) -> dict[str, torch.Tensor]:
        """Return what the loss of the micro-batches since the last call is made of, by name, unread on the device."""
        return {}
