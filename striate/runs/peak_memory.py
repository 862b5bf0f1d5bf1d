"""Peak memory of the accelerator, or of this process."""

from __future__ import annotations

import sys
from pathlib import Path
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


def reset_resident_peak() -> bool:
    """Reset this process's peak of resident memory; return whether the system can do that (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def resident_peak_gib() -> float | None:
    """Return this process's peak of resident memory since the reset, in GiB; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return kilobytes[0] / 2**20 if kilobytes else None


def _is_cuda(device: torch.device | str) -> bool:
    return str(device).startswith("cuda")
