"""The language-model loss, computed only where there is an answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from striate.data.encoding import IGNORED
from striate.models.anatomy import unwrap


def answer_loss(
    model: nn.Module, inputs: Mapping[str, Any], answer_tokens: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Return the cross entropy of the next answer token, in nats a token: the loss of a Hugging Face causal LM.

    L = -1/n sum over answer positions t of log p(label_t | tokens before t). The LM head and the float32 softmax see
    only the n positions that predict an answer token, not all B x T; the value and its gradients are the same.

    Args:
        model: an LVLM, plain or wrapped by PEFT.
        inputs: a training batch with `labels` (B, T), -100 where there is no answer.
        answer_tokens: n of the whole accumulated batch; None takes that of this batch.
    """
    labels = inputs["labels"]
    targets = labels[:, 1:]
    answered = targets != IGNORED
    rest = {name: value for name, value in inputs.items() if name != "labels"}
    with _only_rows(unwrap(model).get_output_embeddings(), answered):
        logits = model(**rest, use_cache=False).logits
    # A model without a separate LM head module gives logits for every position.
    logits_NV = logits[:, :-1][answered] if logits.shape[:2] == labels.shape else logits[0]
    total = cross_entropy(logits_NV.float(), targets[answered], reduction="sum")
    return total / (answered.sum() if answer_tokens is None else answer_tokens)


@contextmanager
def _only_rows(head: nn.Module | None, answered: torch.Tensor) -> Iterator[None]:
    """Let the LM head see only the hidden states (1, n, D) of positions that predict an answer."""
    if head is None:
        yield
        return

    def keep(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_BTD = args[0]
        return (hidden_BTD[:, :-1][answered].unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()
