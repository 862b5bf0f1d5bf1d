"""One forward pass, every layer, every scorer: what enters and leaves each decoder layer, summed per sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from striate.errors import ModelError
from striate.registry import Strategy
from striate.scorers.sums import PartSums


@dataclass(frozen=True)
class TokenMasks:
    """Which positions of a batch hold what: booleans of shape (B, T)."""

    attended: Tensor
    image: Tensor

    @property
    def text(self) -> Tensor:
        """Attended positions that are not image tokens, shape (B, T)."""
        return self.attended & ~self.image

    @property
    def last(self) -> Tensor:
        """The last attended position of each sample, shape (B, T)."""
        following_BT = self.attended.flip(1).cumsum(1).flip(1)
        return self.attended & (following_BT == 1)

    def to(self, device: torch.device) -> TokenMasks:
        """Return the masks on `device`."""
        return TokenMasks(self.attended.to(device), self.image.to(device))


@dataclass(frozen=True)
class Tally:
    """A sum over the tokens of each sample, and how many tokens that were: shape (B,) each."""

    total: Tensor
    tokens: Tensor


Scorer: TypeAlias = Callable[[Tensor, Tensor, TokenMasks], dict[str, Tally]]
"""A function `(x_in_BTD, x_out_BTD, masks) -> tallies by part`; the layer's score is the mean of the parts' means."""


def tally(values_BT: Tensor, mask_BT: Tensor) -> Tally:
    """Return the sum and count of `values_BT` where `mask_BT` holds; what is masked out may be anything, even NaN."""
    return Tally(values_BT.masked_fill(~mask_BT, 0.0).sum(1), mask_BT.sum(1))


def unit_difference(x_BTD: Tensor, y_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """Return `|u - v|` and `|u + v|` of the unit vectors u, v along x and y: float32, shape (B, T).

    From these, cosine and angle keep their digits for nearly equal vectors, where the usual formulas lose them all.
    """
    u_BTD = nn.functional.normalize(x_BTD.float(), dim=-1)
    v_BTD = nn.functional.normalize(y_BTD.float(), dim=-1)
    return torch.linalg.vector_norm(u_BTD - v_BTD, dim=-1), torch.linalg.vector_norm(u_BTD + v_BTD, dim=-1)


def cosine_distance(x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
    """Return `1 - cos(x, y)` per token, shape (B, T): 0 for the same direction, 1 for orthogonal, 2 for opposite.

    A zero vector has no direction: it counts as orthogonal to any other vector, and as unchanged if it stays zero.
    """
    apart_BT, together_BT = (length.square() for length in unit_difference(x_BTD, y_BTD))
    # Equals |u - v|^2 / 2, since the sum below is 4 for unit vectors.
    return 2 * apart_BT / (apart_BT + together_BT).clamp_min(torch.finfo(torch.float32).tiny)


@dataclass
class _Batch:
    """What the hooks have gathered in one forward pass: per scorer and part, one tally a layer."""

    masks: TokenMasks
    seen: set[int] = field(default_factory=set)
    tallies: dict[tuple[str, str], list[Tally]] = field(default_factory=dict)


class LayerStream:
    """Hooks on the decoder layers that feed scorers while the model runs; a context manager that leaves none behind.

    Only per-sample sums stay (samples x layers numbers a scorer and part), never hidden states.
    """

    def __init__(self, layers: nn.ModuleList, scorers: Sequence[Strategy[Scorer]]) -> None:
        """Keep the decoder `layers`, first to last, and the `scorers` that watch them."""
        self._layers = layers
        self._scorers = scorers
        self._handles: list[Any] = []
        self._batch: _Batch | None = None
        self._done: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = {}

    def __enter__(self) -> LayerStream:
        for index, layer in enumerate(self._layers):
            self._handles.append(layer.register_forward_hook(self._hook(index), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    @contextmanager
    def batch(self, masks: TokenMasks) -> Iterator[None]:
        """Score the one forward pass that runs inside this context; `masks` says what its positions hold.

        Raises:
            ModelError: a layer ran twice or not at all, or its hidden states are not of shape (B, T, D).
        """
        self._batch = _Batch(masks)
        try:
            yield
            self._close(self._batch)
        finally:
            self._batch = None

    def results(self, scorer: str) -> dict[str, PartSums]:
        """Return the sums of `scorer` by part, samples in the order in which they ran."""
        return {
            part: PartSums(
                torch.cat([sums_BL for sums_BL, _ in rows]).numpy().astype(np.float64),
                torch.cat([counts_B for _, counts_B in rows]).numpy().astype(np.float64),
            )
            for (name, part), rows in self._done.items()
            if name == scorer
        }

    def _hook(self, index: int) -> Callable[..., None]:
        """Return the forward hook of layer `index`."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if self._batch is not None:
                x_in = args[0] if args else kwargs["hidden_states"]
                self._update(self._batch, index, x_in, output[0] if isinstance(output, tuple) else output)

        return hook

    def _update(self, batch: _Batch, layer: int, x_in_BTD: Tensor, x_out_BTD: Tensor) -> None:
        """Let every scorer see one layer."""
        if layer in batch.seen or layer != len(batch.seen):
            raise _not_plain(f"layer {layer} did not run exactly once, in order")
        for hidden in (x_in_BTD, x_out_BTD):
            if hidden.ndim != 3 or hidden.shape[:2] != batch.masks.attended.shape:
                expected = (*batch.masks.attended.shape, "D")
                raise _not_plain(f"layer {layer} has hidden states of shape {tuple(hidden.shape)}, not {expected}")
        batch.seen.add(layer)
        masks = batch.masks.to(x_out_BTD.device)
        for scorer in self._scorers:
            for part, found in scorer.function(x_in_BTD.to(x_out_BTD.device), x_out_BTD, masks).items():
                batch.tallies.setdefault((scorer.name, part), []).append(found)

    def _close(self, batch: _Batch) -> None:
        """Move the sums of a finished forward pass off the device, once a batch."""
        if len(batch.seen) != len(self._layers):
            raise _not_plain(f"only {len(batch.seen)} of {len(self._layers)} layers ran")
        for key, tallies in batch.tallies.items():
            sums_BL = torch.stack([one.total.cpu() for one in tallies], dim=1)
            self._done.setdefault(key, []).append((sums_BL, tallies[0].tokens.cpu()))


def _not_plain(problem: str) -> ModelError:
    """Return the error for a language model whose layers can't be scored by input and output."""
    return ModelError(
        f"this language model can't be scored layer by layer: {problem}",
        "decoder layers that run once each, in order, on hidden states of shape (batch, tokens, width)",
        "choose the region by a rule instead, for example uniform:25%",
    )
