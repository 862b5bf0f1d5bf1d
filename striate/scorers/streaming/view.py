"""Norms, cosines and Gram matrices of layer inputs and outputs, computed once for all scorers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from striate.scorers.streaming.groups import TokenGroups
from striate.scorers.streaming.masks import TokenMasks

# Elements of the hidden states that are worked on at once: what a processor's cache holds.
_CHUNK = {"cuda": 1 << 22}
_CHUNK_CPU = 1 << 18
# Below this, a length is rounding: the vector has no direction.
_NO_LENGTH = 1e-12


@dataclass(frozen=True)
class Tally:
    """Sums over the tokens of each sample by layer, (K, N), and how many tokens those were, (N,), on the CPU."""

    total: Tensor
    tokens: Tensor


class Deviation(NamedTuple):
    """How y deviates from x, for vectors along the last axis: float64 but on devices that lack it.

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
        blank = (self.across > 0).to(angle.dtype) * (math.pi / 2)
        return torch.where(self.length == 0, blank, angle.masked_fill(gone, math.pi / 2))

    @property
    def relative_update(self) -> Tensor:
        """`|y - x| / |x|`; 1 where x is zero and y is not, 0 where both are."""
        ratio = torch.hypot(self.along, self.across)
        return torch.where(self.length == 0, (self.across > 0).to(ratio.dtype), ratio)


class Lengths(NamedTuple):
    """What remains of two vectors x and y: `|x|^2`, `x . (y - x)`, and the length of what of `y - x` is across x."""

    square: Tensor
    dot: Tensor
    rest: Tensor

    def deviation(self) -> Deviation:
        """Return the deviation of y from x."""
        square, dot, rest = (length.to(exact(length.device)) for length in self)
        length = square.sqrt()
        unit = length.masked_fill(length == 0, 1.0)
        return Deviation(dot / unit.square(), rest / unit, length)


def lengths(x: Tensor, y: Tensor) -> Lengths:
    """Return the lengths of `x` and `y`, both (..., D), in float32 at least: three numbers for each pair.

    The update is split into its parts along and across x, so that nothing of the size of x is subtracted after a sum,
    and small angles keep their digits. A chunk of rows is held at a time.
    """
    shape = x.shape[:-1]
    x_RD, y_RD = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    rows = max(1, _CHUNK.get(x.device.type, _CHUNK_CPU) // x_RD.shape[1])
    parts = [_sums(*pair) for pair in zip(x_RD.split(rows), y_RD.split(rows), strict=True)]
    if len(parts) == 1:
        return Lengths(*(part_R.view(shape) for part_R in parts[0]))
    return Lengths(*(torch.cat(column).view(shape) for column in zip(*parts, strict=True)))


def _sums(x_RD: Tensor, y_RD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `|x|^2`, `x . (y - x)` and the length of what of `y - x` is across x, shape (R,) each."""
    wide = torch.promote_types(torch.float32, x_RD.dtype)
    update_RD = y_RD.to(wide) - x_RD
    square_R = torch.linalg.vector_norm(x_RD, dim=-1, dtype=wide).square()
    dot_R = (x_RD * update_RD).sum(-1)
    along_R = dot_R / square_R.masked_fill(square_R == 0, 1.0)
    update_RD.addcmul_(x_RD.to(wide), along_R[:, None], value=-1)
    return square_R, dot_R, torch.linalg.vector_norm(update_RD, dim=-1)


def exact(device: torch.device) -> torch.dtype:
    """Return the dtype of small sums on `device`: float64, where it has that."""
    return torch.float32 if device.type == "mps" else torch.float64


class Grams(NamedTuple):
    """Gram matrices of S states between layers, shape (S, G, M, M), and which of them enter and leave each of K layers.

    A layer's input is as a rule the output of the layer before, so S is K + 1.
    """

    states: Tensor
    before: list[int]
    after: list[int]

    def pair(self, values_S: Tensor) -> tuple[Tensor, Tensor]:
        """Return what was worked out from `states`, shape (S, ...), of each layer's input and output: (K, ...) each."""
        # No index tensors: to move one to a device is to wait for it.
        before, after = ([values_S[place] for place in places] for places in (self.before, self.after))
        return torch.stack(before), torch.stack(after)


class LayerView:
    """K decoder layers in one forward pass: what follows from their inputs and outputs, on demand and once."""

    def __init__(self, groups: TokenGroups, lengths: Lengths | None, grams: Grams | None) -> None:
        """Keep what was taken from the hidden states.

        Args:
            groups: what the batch's positions hold.
            lengths: of the input and output of each token, shape (K, B, T) each; None where no scorer reads them.
            grams: inner products between chosen tokens, see `TokenGroups.gram`; None where no scorer reads them.
        """
        self.groups = groups
        self._lengths = lengths
        self._grams = grams

    @classmethod
    def of(cls, x_in_BTD: Tensor, x_out_BTD: Tensor, masks: TokenMasks) -> LayerView:
        """Return the view of one layer with this input and output."""
        block = LayerBlock(TokenGroups(masks), frozenset(("tokens", "grams")))
        block.add(x_in_BTD, x_out_BTD)
        return block.view()

    @cached_property
    def deviation(self) -> Deviation:
        """The deviation of each token's output from its input, shape (K, B, T) each."""
        assert self._lengths is not None, "the scorer does not say that it reads tokens"
        return self._lengths.deviation()

    @cached_property
    def angle(self) -> Tensor:
        """The angle between input and output of each token, in radians, shape (K, B, T)."""
        return self.deviation.angle

    @cached_property
    def cosine_distance(self) -> Tensor:
        """`1 - cos(input, output)` of each token, shape (K, B, T): 0 for the same direction, 1 for orthogonal."""
        return 2 * torch.sin(self.angle / 2).square()

    @property
    def grams(self) -> Grams:
        """Inner products between chosen tokens of each group, of inputs and of outputs."""
        assert self._grams is not None, "the scorer does not say that it reads grams"
        return self._grams

    def tally(self, values_KBT: Tensor, *kinds: str) -> dict[str, Tally]:
        """Return the sums of `values_KBT` over the tokens of each kind, by kind; what padding holds does not matter."""
        return tally(self.groups, values_KBT, kinds)

    def tally_groups(self, values_KG: Tensor) -> dict[str, Tally]:
        """Return one value a sample of each group kind, `image` and `text`; see `TokenGroups.gram`."""
        return {
            kind: Tally(values_KN, counts_N)
            for kind, values_KN, counts_N in zip(("image", "text"), *self.groups.by_kind(values_KG), strict=True)
        }


def tally(groups: TokenGroups, values_KBT: Tensor, kinds: Sequence[str]) -> dict[str, Tally]:
    """Return the sums of `values_KBT` over the tokens of each kind, by kind."""
    totals_PKN = groups.totals(values_KBT, kinds)
    return {kind: Tally(totals_PKN[row], groups.counts(kind)) for row, kind in enumerate(kinds)}


class LayerBlock:
    """A few layers of one forward pass until scorers see them together, which takes few and large operations.

    Of each layer three numbers a token and the Gram matrices are kept, no hidden states but those of the last output.
    """

    def __init__(self, groups: TokenGroups, reads: frozenset[str]) -> None:
        """Start with no layer; `reads` says what scorers look at: `tokens`, `grams`, or both."""
        self._groups = groups
        self._reads = reads
        self._lengths: list[Lengths] = []
        self._grams: list[Tensor] = []
        self._before: list[int] = []
        self._after: list[int] = []
        self._last: tuple[Tensor, Tensor] | None = None
        self.size = 0

    def add(self, x_in_BTD: Tensor, x_out_BTD: Tensor) -> None:
        """Take what scorers need of one layer."""
        self.size += 1
        if "tokens" in self._reads:
            self._lengths.append(lengths(x_in_BTD, x_out_BTD))
        if "grams" in self._reads:
            self._before.append(self._place(x_in_BTD))
            self._grams.append(self._groups.gram(x_out_BTD))
            self._after.append(len(self._grams) - 1)
            self._last = (x_out_BTD, self._grams[-1])

    def view(self) -> LayerView:
        """Return the view of the layers so far, and start again."""
        lengths = Lengths(*map(torch.stack, zip(*self._lengths, strict=True))) if self._lengths else None
        grams = Grams(torch.stack(self._grams), self._before, self._after) if self._grams else None
        self._lengths, self._grams, self._before, self._after, self.size = [], [], [], [], 0
        return LayerView(self._groups, lengths, grams)

    def _place(self, x_in_BTD: Tensor) -> int:
        """Return where the Gram matrices of a layer's input are, adding them where they are not there yet."""
        if self._last is not None and self._last[0] is x_in_BTD:
            if self._grams:
                return len(self._grams) - 1
            self._grams.append(self._last[1])
        else:
            self._grams.append(self._groups.gram(x_in_BTD))
        return len(self._grams) - 1
