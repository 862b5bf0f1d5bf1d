"""Scorers of the weights alone: Spectrum's signal-to-noise ratio, and the change from a base checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from striate.models.anatomy import Anatomy
from striate.scorers.kinds import LayerScorer


def run_weights(
    core: Any, anatomy: Anatomy, scorers: Sequence[LayerScorer], base: Path | None
) -> dict[str, NDArray[np.float64]]:
    """Return the score of every layer, shape (L,), of each scorer whose source is `weights` or `weight change`.

    Args:
        core: the LVLM, without wrappers; adapters inside it count as part of its weights.
        anatomy: its parts.
        scorers: those to run.
        base: the folder of the untuned checkpoint, read tensor by tensor; needed by `weight change` alone.
    """
    raise NotImplementedError
