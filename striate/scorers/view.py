"""What scorers see of one decoder layer: quantities that several of them need are worked out once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from striate.scorers.groups import TokenGroups
from striate.scorers.masks import TokenMasks

# Elements of the hidden states that are worked on at once: what a processor's cache holds.
_CHUNK = {"cuda": 1 << 22}
_CHUNK_CPU = 1 << 18
# Below this, a length is rounding: the vector has no direction.
_NO_LENGTH = 1e-12

GramMeasure = Callable[[Tensor, TokenGroups], Tensor]


@dataclass(frozen=True)
class Tally:
    """A sum over the tokens of each sample, shape (N,), and how many tokens that were, shape (N,), on the CPU."""

    total: Tensor
    tokens: Tensor


class Turn(NamedTuple):
    """How y lies to x, for vectors along the last axis: float64 but on devices that lack it.

    Attributes:
        along: `(y - x) . x / |x|^2`: how much longer y is along x.
        across: `|y - x - along x| / |x|`: how far y leaves the line of x.
        length: `|x|`.
    """

    along: Tensor
    across: Tensor
    length: Tensor

    @property
    def angle(self) -> Tensor:
        """The angle between x and y in radians: pi / 2 where one of them is zero, 0 where both are."""
        angle = torch.atan2(self.across, 1 + self.along)
        gone = self.across.square() + (1 + self.along).square() < _NO_LENGTH
        blank = torch.where(self.across > 0, math.pi / 2, 0.0)
        return torch.where(self.length == 0, blank.to(angle), angle.masked_fill(gone, math.pi / 2))

    @property
    def relative_update(self) -> Tensor:
        """`|y - x| / |x|`; 1 where x is zero and y is not, 0 where both are."""
        ratio = torch.hypot(self.along, self.across)
        return torch.where(self.length == 0, (self.across > 0).to(ratio), ratio)


def turn(x: Tensor, y: Tensor) -> Turn:
    """Return how `y` lies to `x`, both (..., D); small angles keep their digits.

    The update is split into its parts along and across x, so that nothing of the size of x is subtracted after a sum.
    Sums over D are in float32 at least; a chunk of rows is held at a time.
    """
    shape = x.shape[:-1]
    x_RD, y_RD = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    rows = max(1, _CHUNK.get(x.device.type, _CHUNK_CPU) // x_RD.shape[1])
    parts = [_sums(*pair) for pair in zip(x_RD.split(rows), y_RD.split(rows), strict=True)]
    squares, dots, rests = (torch.cat(column).to(exact(x.device)).view(shape) for column in zip(*parts, strict=True))
    length = squares.sqrt()
    unit = torch.where(length == 0, 1.0, length)
    return Turn(dots / unit.square(), rests / unit, length)


def _sums(x_RD: Tensor, y_RD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `|x|^2`, `x . (y - x)` and the length of what of `y - x` is across x, shape (R,) each."""
    wide = torch.promote_types(torch.float32, x_RD.dtype)
    update_RD = y_RD.to(wide) - x_RD
    square_R = torch.linalg.vector_norm(x_RD, dim=-1, dtype=wide).square()
    dot_R = (x_RD * update_RD).sum(-1)
    along_R = dot_R / torch.where(square_R == 0, 1.0, square_R)
    update_RD.addcmul_(x_RD.to(wide), along_R[:, None], value=-1)
    return square_R, dot_R, torch.linalg.vector_norm(update_RD, dim=-1)


def exact(device: torch.device) -> torch.dtype:
    """Return the dtype of small sums on `device`: float64, where it has that."""
    return torch.float32 if device.type == "mps" else torch.float64


class LayerView:
    """One decoder layer in one forward pass: its input and output, and what follows from them, on demand and once."""

    def __init__(
        self,
        x_in_BTD: Tensor,
        x_out_BTD: Tensor,
        masks: TokenMasks,
        groups: TokenGroups | None = None,
        before: LayerView | None = None,
    ) -> None:
        """Keep the hidden states of the batch that `masks` describes.

        Args:
            x_in_BTD: what enters the layer.
            x_out_BTD: what leaves it, before any final norm.
            masks: what the positions hold.
            groups: the same, prepared for summing once a batch.
            before: the view of the layer before, whose output this layer may have as its input.
        """
        self.x_in = x_in_BTD
        self.x_out = x_out_BTD
        self.masks = masks
        self.groups = groups or TokenGroups(masks)
        self._before = before
        self._of_output: dict[GramMeasure, Tensor] = {}

    @cached_property
    def turn(self) -> Turn:
        """How the output of each token lies to its input, shape (B, T) each."""
        return turn(self.x_in, self.x_out)

    @cached_property
    def angle(self) -> Tensor:
        """The angle between input and output of each token, in radians, shape (B, T)."""
        return self.turn.angle

    @cached_property
    def cosine_distance(self) -> Tensor:
        """`1 - cos(input, output)` of each token, shape (B, T): 0 for the same direction, 1 for orthogonal."""
        return 2 * torch.sin(self.angle / 2).square()

    def from_grams(self, measure: GramMeasure) -> tuple[Tensor, Tensor]:
        """Return `measure` of the Gram matrices of the input and of the output, each worked out once.

        Where the input is the output of the layer before, what was worked out there is taken.

        Args:
            measure: a function `(gram_GMM, groups) -> (G, ...)`, see `TokenGroups.gram`.
        """
        before = self._before
        if before is not None and before.x_out is self.x_in and measure in before._of_output:
            return before._of_output[measure], self._measured(measure)
        return measure(self._gram_in, self.groups), self._measured(measure)

    def _measured(self, measure: GramMeasure) -> Tensor:
        """Return `measure` of the output's Gram matrices."""
        if measure not in self._of_output:
            self._of_output[measure] = measure(self._gram_out, self.groups)
        return self._of_output[measure]

    @cached_property
    def _gram_in(self) -> Tensor:
        """Inner products between the inputs of chosen tokens of each group."""
        return self.groups.gram(self.x_in)

    @cached_property
    def _gram_out(self) -> Tensor:
        """Inner products between the outputs of the same tokens."""
        return self.groups.gram(self.x_out)

    def tally(self, values_BT: Tensor, *kinds: str) -> dict[str, Tally]:
        """Return the sums of `values_BT` over the tokens of each kind, by kind; what padding holds does not matter."""
        totals_PN = self.groups.totals(values_BT, kinds)
        return {kind: Tally(totals_PN[row], self.groups.counts(kind)) for row, kind in enumerate(kinds)}

    def tally_groups(self, values_G: Tensor) -> dict[str, Tally]:
        """Return one value a sample of each group kind, `image` and `text`; see `TokenGroups.gram`."""
        return {
            kind: Tally(values_N, counts_N)
            for kind, values_N, counts_N in zip(("image", "text"), *self.groups.by_kind(values_G), strict=True)
        }

    def release(self) -> None:
        """Let go of all but what the next layer may use."""
        self._before = None
