"""Refit: the weight of a kept layer's down projection that gives what the layers behind it would have added too.

With a (width F) the input of `down_proj`, x the state that leaves the kept layer and x* what the next kept layer should
get, t = x* - (x - W0 a) is what `down_proj` should give. Over calibration tokens with weights w, and a ridge l towards
W0,

    W = (sum w t a' + l W0) (sum w a a' + l I)^-1 = W0 + (sum w (x* - x) a') (sum w a a' + l I)^-1

as t - W0 a = x* - x; the second form is computed, in float64. A transform of the layer's output alone, W = T W0
(ReplaceMe, arXiv 2505.02819), is among the W that it chooses from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Shares of the mean of the diagonal of sum w a a'.
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_ROWS_AT_ONCE = 2048


def wide_device(device: torch.device) -> torch.device:
    """Return where sums in float64 are made for tensors on `device`: there, or on the CPU where it has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


class RefitSums:
    """Sums of w a a' (F, F) and w (x* - x) a' (D, F) over tokens, float64."""

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:
        """Begin with none, for F inputs and D outputs."""
        self.tokens = 0
        self.gram_FF = torch.zeros(inputs, inputs, dtype=torch.float64, device=device)
        self.cross_DF = torch.zeros(outputs, inputs, dtype=torch.float64, device=device)

    def add(self, inputs_NF: Tensor, lacking_ND: Tensor, weights_N: Tensor) -> None:
        """Add N tokens: a, x* - x, and w."""
        roots_N1 = weights_N.double()[:, None].sqrt()
        inputs = inputs_NF.to(self.gram_FF.device).double() * roots_N1.to(self.gram_FF.device)
        lacking = lacking_ND.to(self.gram_FF.device).double() * roots_N1.to(self.gram_FF.device)
        self.gram_FF.addmm_(inputs.T, inputs)
        self.cross_DF.addmm_(lacking.T, inputs)
        self.tokens += len(inputs)

    def change(self, ridge: float) -> Tensor | None:
        """Return W - W0, float64, shape (D, F); None where the ridge is too small for the sums to be inverted.

        Args:
            ridge: as a share of the mean of the diagonal of sum w a a'.
        """
        former_F = self.gram_FF.diagonal().clone()
        # In place, and two triangular solves: at 7B each further copy of the matrix would be 1 GB.
        self.gram_FF.diagonal().add_(ridge * former_F.mean())
        factor_FF, failed = torch.linalg.cholesky_ex(self.gram_FF)
        self.gram_FF.diagonal().copy_(former_F)
        if int(failed):
            return None
        half_DF = torch.linalg.solve_triangular(factor_FF.T, self.cross_DF, upper=True, left=False)
        change_DF: Tensor = torch.linalg.solve_triangular(factor_FF, half_DF, upper=False, left=False)
        return change_DF if bool(torch.isfinite(change_DF).all()) else None


@dataclass(frozen=True)
class HeldOut:
    """Tokens that a refit is judged by: a (N, F), x* - x (N, D) in float32, and w (N,) in float64.

    They wait on the CPU, as the sums already fill an accelerator: at 7B they would take 1.3 GB more.
    """

    inputs: Tensor
    lacking: Tensor
    weights: Tensor

    @classmethod
    def joined(cls, parts: Sequence[HeldOut]) -> HeldOut:
        """Return the tokens of all parts."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("inputs", "lacking", "weights")))

    def error(self, change_DF: Tensor | None = None) -> float:
        """Return the sum of w |x* - x - dW a|^2, the squared error relative to |t|^2."""
        total = 0.0
        parts = zip(*(tensor.split(_ROWS_AT_ONCE) for tensor in (self.inputs, self.lacking, self.weights)), strict=True)
        for inputs_NF, lacking_ND, weights_N in parts:
            rest_ND = lacking_ND
            if change_DF is not None:
                rest_ND = lacking_ND.to(change_DF.device) - inputs_NF.to(change_DF.device).float() @ change_DF.T
            total += float((rest_ND.square().sum(-1).cpu().double() * weights_N).sum())
        return total


@dataclass(frozen=True)
class Refit:
    """The weight that is best on held-out tokens.

    Attributes:
        weight: (D, F) in the dtype of the weight before; None where no change is best.
        ridge: of `RIDGES`, with which it was made.
        before: squared error of held-out tokens relative to what is wanted, without a change.
        after: the same with it.
    """

    weight: Tensor | None
    ridge: float | None
    before: float
    after: float


def best_refit(
    weight_DF: Tensor, sums: RefitSums, held_out: HeldOut, gain: float = 1.0, ridges: Sequence[float] = RIDGES
) -> Refit:
    """Return the refit whose ridge has the least error on held-out tokens, or none where no change has less.

    The weights are judged as they are stored, rounded to the dtype of `weight_DF`.

    Args:
        weight_DF: W0.
        sums: of the tokens that are fitted to.
        held_out: other tokens.
        gain: what the module's output is multiplied by before it is added to the state.
        ridges: candidates.
    """
    before = held_out.error()
    best = Refit(None, None, before, before)
    for ridge in ridges:
        change_DF = sums.change(ridge)
        if change_DF is None:
            continue
        weight = weight_DF.to(change_DF.device).double().add_(change_DF, alpha=1 / gain).to(weight_DF.dtype)
        weight = weight.to(weight_DF.device)
        error = held_out.error((weight.float() - weight_DF.float()) * gain)
        if error < best.after:
            best = Refit(weight, ridge, before, error)
    return best
