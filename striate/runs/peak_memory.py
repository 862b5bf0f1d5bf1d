"""Peak memory of the accelerator, or of this process."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def reset_peak_memory(device: torch.device | str) -> None:
    """Reset the accelerator's peak; a process's own can't be reset."""
    if not _is_cuda(device):
        return
    import torch

    # Before its first use CUDA has nothing to reset, and refuses to.
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_gib(device: torch.device | str) -> float:
    """Return the peak of the accelerator's memory since the reset, in GiB; on a CPU, of the whole process so far."""
    if _is_cuda(device):
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "win32":
        return 0.0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _is_cuda(device: torch.device | str) -> bool:
    return str(device).startswith("cuda")
