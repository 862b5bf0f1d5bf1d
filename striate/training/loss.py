"""The language-model loss, computed only where there is an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from striate.data.label_mask import IGNORED
from striate.models.interventions.selected_logits import answer_logits
from striate.training.batching.label_positions import ANSWERS, label_positions


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
    total, count = answer_total(model, inputs)
    return total / (count if answer_tokens is None else answer_tokens)


def answer_total(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed cross entropy of a batch's answer tokens, in nats, and how many these are."""
    answers = inputs[ANSWERS] if ANSWERS in inputs else label_positions(inputs["labels"])
    rows_N, columns_N, labels_N = answers
    rest = {name: value for name, value in inputs.items() if name not in ("labels", ANSWERS)}
    logits_NV = answer_logits(model, rest, rows_N, columns_N)
    total = cross_entropy(logits_NV.float(), labels_N, reduction="sum", ignore_index=IGNORED)
    return total, (labels_N != IGNORED).sum()
