"""Peak memory of the accelerator, or of this process, since it was reset: of a model within a stage, and of a stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass
class _Seen:
    """What this process has seen: the highest peak in the stage before the last reset, and whether a reset works."""

    highest: float = 0.0
    resettable: bool = False


_seen = _Seen()


def begin_stage_peak(device: torch.device | str) -> None:
    """Reset the peak for a stage: what came before it is none of its own."""
    reset_peak_memory(device)
    _seen.highest = 0.0


def stage_peak_gib(device: torch.device | str) -> float:
    """Return the peak in GiB since the stage began, whatever was reset within it; 0 where the system does not tell."""
    return max(_seen.highest, peak_memory_gib(device))


def reset_peak_memory(device: torch.device | str) -> None:
    """Reset the peak of the accelerator, or of this process's resident memory where the system can do that."""
    if not _is_cuda(device):
        reset_resident_peak()
        return
    import torch

    # Before its first use CUDA has nothing to reset, and refuses to.
    if torch.cuda.is_initialized():
        _seen.highest = max(_seen.highest, peak_memory_gib(device))
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_gib(device: torch.device | str) -> float:
    """Return the peak of memory since the reset, in GiB: the accelerator's, or this process's resident memory.

    It is 0 where the system can't reset the process's peak, which then is that of its whole life.
    """
    if _is_cuda(device):
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**30
    return (resident_peak_gib() or 0.0) if _seen.resettable else 0.0


def reset_resident_peak() -> bool:
    """Reset this process's peak of resident memory; return whether the system can do that (Linux)."""
    before = peak_memory_gib("cpu")
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        _seen.resettable = False
        return False
    _seen.highest, _seen.resettable = max(_seen.highest, before), True
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
