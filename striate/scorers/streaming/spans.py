"""Angular distance over spans of layers: the last token's state before layer l and after layer l + n - 1."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Spans = NDArray[np.float32]


class SpanStates:
    """The last tokens of one batch before and after each layer, until their angles are taken."""

    def __init__(self) -> None:
        """Start with no layer."""
        self._before: list[Tensor] = []
        self._after: list[Tensor] = []

    def add(self, x_in_BTD: Tensor, x_out_BTD: Tensor, last_N: Tensor) -> None:
        """Keep the states of one layer at the flat positions `last_N`."""
        self._before.append(x_in_BTD.flatten(0, 1)[last_N])
        self._after.append(x_out_BTD.flatten(0, 1)[last_N])

    def angles(self) -> Tensor:
        """Return the angles as shares of half a turn, shape (N, L, L): from layer l's input to layer m's output."""
        device = self._after[0].device
        wide = torch.float32 if device.type == "mps" else torch.float64
        before_LND, after_LND = (
            torch.nn.functional.normalize(torch.stack([state_ND.to(device) for state_ND in states]).to(wide), dim=-1)
            for states in (self._before, self._after)
        )
        cosines_NLL = before_LND.transpose(0, 1) @ after_LND.permute(1, 2, 0)
        return torch.arccos(cosines_NLL.clamp(-1, 1)) / math.pi


def span_table(angles_NLL: Spans) -> tuple[tuple[float, ...], ...]:
    """Return the mean over samples by span: entry [n - 1][l] is of layers l to l + n - 1."""
    mean_LL = angles_NLL.astype(np.float64).mean(0)
    return tuple(tuple(np.diagonal(mean_LL, n).tolist()) for n in range(len(mean_LL)))
