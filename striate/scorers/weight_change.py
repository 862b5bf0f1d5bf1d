"""How far tuning moved the weights of a layer: relative length of the step, and the angle it turned them."""

import math

import torch
from torch import Tensor

from striate.scorers.base import LayerScorer


def parameter_change(before: Tensor, after: Tensor) -> Tensor:
    """Return `|W' - W| / |W|` (Frobenius) of one matrix before and after tuning, a scalar.

    The score of a layer is the mean over its matrices: 0 where nothing was trained. Paper: arXiv 2412.12785 compares
    choosing layers by it with choosing them evenly.
    """
    return torch.linalg.vector_norm(after - before) / torch.linalg.vector_norm(before)


def angular_change(before: Tensor, after: Tensor) -> Tensor:
    """Return the angle between one matrix before and after tuning, `arccos(<W, W'> / |W||W'|) / pi`, a scalar.

    The score of a layer is the mean over its matrices, as a share of half a turn: 0 where weights kept their direction,
    however much they grew, and 1 where they changed sign. Computed from `|u - v|` and `|u + v|` of the unit vectors,
    which keeps its digits for small angles. Paper: arXiv 2412.12785, its parameter change, here by angle.
    """
    u, v = (matrix / torch.linalg.vector_norm(matrix) for matrix in (before, after))
    return 2 / math.pi * torch.atan2(torch.linalg.vector_norm(u - v), torch.linalg.vector_norm(u + v))


_LIMITS = "it says where training moved weights, not where that helped; layers that were frozen score 0"

PARAMETER_CHANGE = LayerScorer(
    name="parameter-change",
    title="Parameter change",
    summary="the length of the step from the base checkpoint's weights to these, relative to the weights' length",
    function=parameter_change,
    paper="https://arxiv.org/abs/2412.12785",
    source="weight change",
    limits=_LIMITS,
)

ANGULAR_CHANGE = LayerScorer(
    name="angular-change",
    title="Angular change",
    summary="the angle between the base checkpoint's weights and these, as a share of half a turn",
    function=angular_change,
    paper="https://arxiv.org/abs/2412.12785",
    source="weight change",
    limits=_LIMITS,
)
