"""Whether operators that striate brings run by its Triton kernels."""

from __future__ import annotations

from importlib.util import find_spec

from torch import Tensor

# Found once: a compiler can't follow the search.
HAS_TRITON = find_spec("triton") is not None


def runs_triton(tensor: Tensor) -> bool:
    """Return whether kernels run on `tensor`: on a CUDA device, or interpreted on the CPU to test them."""
    return HAS_TRITON and (tensor.device.type == "cuda" or interpreted())


def interpreted() -> bool:
    """Return whether Triton runs its kernels on the CPU."""
    if not HAS_TRITON:
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)
