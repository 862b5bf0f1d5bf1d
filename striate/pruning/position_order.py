"""Which layers go by their place alone: the controls that a ranking by answers must beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence


def topmost(layers: Sequence[int], count: int) -> tuple[int, ...]:
    """Return the last `count` of `layers`, next to the output."""
    return tuple(sorted(layers)[len(layers) - count :])


def evenly_spaced(layers: Sequence[int], count: int) -> tuple[int, ...]:
    """Return the middle one of each of `count` even stripes of `layers`."""
    ordered = sorted(layers)
    return tuple(ordered[(2 * stripe + 1) * len(ordered) // (2 * count)] for stripe in range(count))


# By the names that `config.layer_settings` knows.
ORDERS: Mapping[str, Callable[[Sequence[int], int], tuple[int, ...]]] = {"top": topmost, "spaced": evenly_spaced}
