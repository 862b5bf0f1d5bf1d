"""Gaps: the runs of removed layers, each with the kept layer before it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Gap:
    """Removed layers without a kept one between them, or none behind a kept layer that follows others.

    Attributes:
        layers: which, in rising order.
        before: the kept layer that leads into the gap; None where the gap begins at layer 0.
    """

    layers: tuple[int, ...]
    before: int | None

    @property
    def end(self) -> int:
        """The last layer before the next kept one: what leaves it in the whole model is what that one should get."""
        assert self.layers or self.before is not None
        return self.layers[-1] if self.layers else self.before  # type: ignore[return-value]


def find_gaps(removed: Collection[int]) -> tuple[Gap, ...]:
    """Return the gaps that the layers `removed` leave, first to last."""
    gaps: list[Gap] = []
    for layer in sorted(set(removed)):
        if gaps and gaps[-1].end == layer - 1:
            gaps[-1] = Gap((*gaps[-1].layers, layer), gaps[-1].before)
        else:
            gaps.append(Gap((layer,), layer - 1 if layer else None))
    return tuple(gaps)


def with_followers(gaps: Sequence[Gap], depth: int) -> tuple[Gap, ...]:
    """Return the gaps, and as gaps of no layer all kept layers behind the first that lead into none, first to last."""
    removed = {layer for gap in gaps for layer in gap.layers}
    taken = removed | {gap.before for gap in gaps}
    followers = (Gap((), layer) for layer in range(gaps[0].end + 1, depth) if layer not in taken)
    return tuple(sorted([*gaps, *followers], key=lambda gap: gap.end))
