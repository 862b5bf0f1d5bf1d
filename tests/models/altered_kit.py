"""Layers altered the plain way: a hook on one layer, a whole forward pass for each, and NumPy for the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from striate.models.structure.anatomy import decoder_layers, find_anatomy
from striate.scorers.knock_out import KNOCK_OUT, KNOCK_OUT_ACCURACY
from striate.scorers.layer_contribution import LAYER_CONTRIBUTION_IMAGE, LAYER_CONTRIBUTION_TEXT
from striate.scorers.streaming.batches import Batches

Array = NDArray[np.float64]
ALTERED = (KNOCK_OUT, KNOCK_OUT_ACCURACY, LAYER_CONTRIBUTION_IMAGE, LAYER_CONTRIBUTION_TEXT)
BLIND = (KNOCK_OUT, KNOCK_OUT_ACCURACY, LAYER_CONTRIBUTION_TEXT)


@dataclass(frozen=True)
class One:
    """A sample that has a name and nothing else: its batch is made by hand."""

    id: str


def batches_of(inputs: dict[str, Any], labels: torch.Tensor) -> Batches[Any, Any]:
    """Return one batch of all rows."""
    rows = [One(f"row {index}") for index in range(len(labels))]
    return Batches(rows, lambda part: {**inputs, "labels": labels}, len(rows))


def last_tokens(inputs: dict[str, Any], count: int = 2) -> torch.Tensor:
    """Return labels that make the last tokens of each row the answer."""
    labels = inputs["input_ids"].clone()
    labels[:, :-count] = -100
    return labels


@contextmanager
def skipping(model: Any, layer: int, mask_BT: torch.Tensor) -> Iterator[None]:
    """Let the tokens of `mask_BT` leave `layer` as they came."""

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        x_in = args[0] if args else kwargs["hidden_states"]
        x_out = output[0] if isinstance(output, tuple) else output
        mixed = torch.where(mask_BT[..., None], x_in, x_out)
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    handle = decoder_layers(model)[layer].register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def log_probabilities(model: Any, inputs: dict[str, Any]) -> Array:
    """Return the log-probabilities of every position's next token, float64, shape (B, T, V)."""
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits.double().numpy()
    highest = logits.max(-1, keepdims=True)
    return logits - highest - np.log(np.exp(logits - highest).sum(-1, keepdims=True))


def expected(model: Any, inputs: dict[str, Any], labels: torch.Tensor) -> dict[str, Array]:
    """Return each scorer's sums (B, L) over answer tokens."""
    anatomy = find_anatomy(model)
    image = torch.isin(inputs["input_ids"], torch.tensor(anatomy.image_token_ids, dtype=torch.long))
    masks = {"answer": torch.ones_like(image), "image": image, "text": ~image}
    targets = labels[:, 1:].numpy()
    answered = targets != -100
    plain = log_probabilities(model, inputs)[:, :-1]
    found: dict[str, list[Array]] = {scorer.name: [] for scorer in ALTERED}
    for layer in range(anatomy.num_layers):
        altered = {}
        for kind, mask in masks.items():
            with skipping(model, layer, mask):
                altered[kind] = log_probabilities(model, inputs)[:, :-1]
        found["knock-out"].append(_summed(_of(plain, targets) - _of(altered["answer"], targets), answered))
        hits = [(one.argmax(-1) == targets).astype(float) for one in (plain, altered["answer"])]
        found["knock-out-accuracy"].append(_summed(hits[0] - hits[1], answered))
        for kind in ("image", "text"):
            divergence = (np.exp(plain) * (plain - altered[kind])).sum(-1)
            found[f"layer-contribution-{kind}"].append(_summed(divergence, answered))
    return {name: np.stack(columns, axis=1) for name, columns in found.items()}


def _of(log_p: Array, targets: NDArray[np.int64]) -> Array:
    return np.take_along_axis(log_p, np.maximum(targets, 0)[..., None], axis=-1)[..., 0]


def _summed(values: Array, answered: NDArray[np.bool_]) -> Array:
    return np.where(answered, values, 0.0).sum(1)
