"""Spectrum's signal-to-noise ratio of weights."""

import torch
from torch import Tensor

from striate.scorers.runners.weights import WeightScorer

# The interquartile range of a normal distribution, in standard deviations.
_NORMAL_IQR = 1.349


def spectrum_snr(weight: Tensor) -> Tensor:
    """Return the signal-to-noise ratio of one matrix, a scalar: see `signal_to_noise`."""
    return signal_to_noise(singular_values(weight), *weight.shape)


def signal_to_noise(singular_values: Tensor, rows: int, columns: int) -> Tensor:
    """Return the signal-to-noise ratio of one matrix from its singular values, a scalar.

    `SNR = (sum of s_k > e / sum of s_k <= e) / max s_k` with the edge `e = sigma * (1 + sqrt(beta))` of Marchenko and
    Pastur, `sigma = IQR(s) / 1.349` and beta the matrix's shorter side over its longer one. Paper: Spectrum,
    arXiv 2406.06623, its section 4; it ranks layers within each kind of matrix. Where all singular values lie above the
    edge, the smallest one counts as noise, so that the ratio stays finite.
    """
    quartiles = torch.quantile(singular_values, torch.tensor([0.25, 0.75]).to(singular_values))
    beta = min(rows, columns) / max(rows, columns)
    edge = (quartiles[1] - quartiles[0]) / _NORMAL_IQR * (1 + beta**0.5)
    noise = singular_values <= torch.maximum(edge, singular_values.min())
    return singular_values[~noise].sum() / singular_values[noise].sum() / singular_values.max()


def singular_values(weight: Tensor) -> Tensor:
    """Return the singular values of a matrix in rising order, float64, exact to about 1e-8 of the largest.

    From the eigenvalues of the smaller Gram matrix, which on a GPU are tens of times faster than a decomposition.
    """
    # Apple's GPUs have no float64.
    exact = weight.detach().to("cpu" if weight.device.type == "mps" else weight.device).double()
    gram = exact @ exact.mT if exact.shape[0] <= exact.shape[1] else exact.mT @ exact
    return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()


SPECTRUM_SNR = WeightScorer(
    name="spectrum-snr",
    title="Spectrum signal-to-noise",
    summary="how far the singular values of the layer's matrices rise above the noise, each kind of matrix alike",
    function=spectrum_snr,
    paper="https://arxiv.org/abs/2406.06623",
    source="weights",
    by_kind=True,
    limits="weights alone: it knows neither pictures nor tasks, and the edge is a rule of thumb for trained weights",
)
