"""Gaps: the runs of removed layers, each with the kept layer before it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Gap:
    """Removed layers without a kept one between them.

    Attributes:
        layers: which, in rising order.
        before: the kept layer that leads into the gap; None where the gap begins at layer 0.
    """

    layers: tuple[int, ...]
    before: int | None

    @property
    def end(self) -> int:
        """The last removed layer: what leaves it in the whole model is what the next kept layer should get."""
        return self.layers[-1]


def find_gaps(removed: Collection[int]) -> tuple[Gap, ...]:
    """Return the gaps that the layers `removed` leave, first to last."""
    gaps: list[Gap] = []
    for layer in sorted(set(removed)):
        if gaps and gaps[-1].end == layer - 1:
            gaps[-1] = Gap((*gaps[-1].layers, layer), gaps[-1].before)
        else:
            gaps.append(Gap((layer,), layer - 1 if layer else None))
    return tuple(gaps)
