"""Two models' scores on the same items, and which items share a picture. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Pictures = tuple[str, ...]


@dataclass(frozen=True)
class Paired:
    """Two models' scores on the same items of one task, (n,) each, with the items' weights and pictures.

    `pictures` names the pictures of each item, or the item itself where it has none: items that share one are no
    independent observations, also across tasks.
    """

    baseline: Floats
    other: Floats
    weights: Floats
    pictures: tuple[Pictures, ...]

    @classmethod
    def of(
        cls,
        baseline: ArrayLike,
        other: ArrayLike,
        weights: ArrayLike | None = None,
        pictures: Sequence[str | Pictures] | None = None,
    ) -> Paired:
        """Return the pair as arrays, checked to be of one length; equal weights and an own picture each if not given.

        Raises:
            ValueError: the lengths differ, or there is nothing.
        """
        first, second = np.asarray(baseline, dtype=np.float64), np.asarray(other, dtype=np.float64)
        weight = np.ones_like(first) if weights is None else np.asarray(weights, dtype=np.float64)
        if not first.shape == second.shape == weight.shape or first.ndim != 1 or not first.size:
            raise ValueError(f"scores and weights differ in shape: {first.shape}, {second.shape}, {weight.shape}")
        # Named by the array itself: no two tasks share one by accident.
        names = [f"{id(first)}/{index}" for index in range(len(first))] if pictures is None else pictures
        if len(names) != len(first):
            raise ValueError(f"{len(first)} scores, but pictures of {len(names)} items")
        return cls(first, second, weight, tuple((name,) if isinstance(name, str) else name for name in names))

    @property
    def means(self) -> Floats:
        """The two weighted means, (2,): baseline, other."""
        return np.average(np.stack([self.baseline, self.other]), axis=1, weights=self.weights)


def clusters_of(items: Sequence[Pictures]) -> Ints:
    """Return a number for each item, from 0 on: equal where items share a picture, directly or through other items."""
    leader: dict[str, str] = {}

    def lead(name: str) -> str:
        while (above := leader.setdefault(name, name)) != name:
            leader[name] = leader[above]
            name = above
        return name

    for first, *others in items:
        for other in others:
            leader[lead(other)] = lead(first)
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(lead(names[0]), len(numbers)) for names in items], dtype=np.intp)


def totals(groups: Ints, values: Floats) -> Floats:
    """Return the sum of `values` (n,) in each of the groups, numbered from 0 on."""
    return np.bincount(groups, values).astype(np.float64)
