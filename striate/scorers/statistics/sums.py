"""Sums per sample and layer, in NumPy, that every scorer of samples hands over."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass
class PartSums:
    """One scorer on one kind of token: sums per sample and layer, shape (N, L), and token counts, shape (N,).

    The part's score of a layer is `sums.sum(0) / counts.sum()`; a sample without such tokens has a count of 0.
    """

    sums: NDArray[np.float64]
    counts: NDArray[np.float64]
