"""Narrow products of dropped values by their kernels, in half precision, against PyTorch's operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from striate.training.compile import dropped

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("count", "rank", "columns", "rows"),
    [(1, 8, 96, 5), (1, 128, 11008, 700), (2, 64, 576, 1030), (3, 128, 4096, 6208), (3, 256, 640, 129)],
)
def test_kernels(count: int, rank: int, columns: int, rows: int, dtype: torch.dtype) -> None:
    """Both ways; of x also rows of a longer tensor."""
    torch.manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=dtype)

    wide, factors, upwards = random(1, rows, columns + 64), random(count, rank, columns), random(count, 1, rows, rank)
    keys = dropped.draw_keys(count, torch.Size((1, rows)), wide.device)
    hidden = wide[..., :columns]
    assert dropped.has_kernels(hidden, list(factors))
    pairs = [
        (dropped.narrow(hidden, keys, factors, 0.1), dropped._narrow(hidden.double(), keys, factors.double(), 0.1)),
        (
            dropped.narrow_back(upwards, keys, factors, 0.1),
            dropped._narrow_back(upwards.double(), keys, factors.double(), 0.1),
        ),
    ]
    for found, expected in pairs:
        # One rounding of the result, and of a sum in float32.
        error = (found.double() - expected).norm() / expected.norm()
        assert float(error) < torch.finfo(dtype).eps
