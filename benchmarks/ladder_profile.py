"""Where an accelerator's time goes in a step, by kinds of kernels."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity

# The first that matches names the kind.
KINDS = (
    ("attention", r"flash|fmha|sdpa|mem_eff|attention"),
    ("matrix products", r"gemm|cutlass|nvjet|xmma|cublas|wgmma|_mm_|splitk"),
    ("optimizer and clipping", r"adam|multi_tensor|foreach|norm_kernel|lpnorm"),
    ("fused elementwise (compiled)", r"^triton_"),
    ("copies and fills", r"memcpy|memset|copy_kernel|fill"),
    ("elementwise (eager)", r"elementwise|vectorized|reduce|softmax|dropout|cat|index|gather|scatter|norm"),
)
STEPS = 3
_MARKS = ("## ", "Optimizer.")
RANK = 128
_GAPS = (2, 5, 20, 100, float("inf"))


def profile(step: Callable[[], Any], device: str) -> dict[str, Any]:
    """Return milliseconds a step by kind of kernel, those of LoRA's products, the gaps, and the longest kernels."""
    step()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    _wait(device)
    with torch.profiler.profile(activities=activities, record_shapes=True) as found:
        begin = time.perf_counter()
        for _ in range(STEPS):
            step()
        _wait(device)
        wall = 1e3 * (time.perf_counter() - begin) / STEPS
    kernels: defaultdict[str, float] = defaultdict(float)
    counts: defaultdict[str, int] = defaultdict(int)
    # The compiler and optimizers mark whole spans on the device's timeline too; they aren't kernels.
    ran = [
        event
        for event in found.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith(_MARKS)
    ]
    for event in ran:
        kernels[event.name] += event.self_device_time_total / 1e3 / STEPS
        counts[event.name] += 1
    kinds: defaultdict[str, float] = defaultdict(float)
    for name, spent in kernels.items():
        kinds[_kind(name)] += spent
    busy = sum(kernels.values())
    longest = sorted(kernels.items(), key=lambda item: -item[1])[:25]
    return {
        "wall_ms": round(wall, 1),
        "busy_ms": round(busy, 1),
        "gaps_ms": round(wall - busy, 1),
        "gaps": _gaps([(event.time_range.start, event.time_range.end, event.name) for event in ran]),
        "kernels_a_step": sum(counts.values()) // STEPS,
        "kinds_ms": {name: round(spent, 2) for name, spent in sorted(kinds.items(), key=lambda item: -item[1])},
        "lora_products_ms": round(_lora(found), 2),
        "longest_ms": {name[:110]: [round(spent, 2), counts[name] // STEPS] for name, spent in longest},
    }


def _gaps(ran: list[tuple[float, float, str]]) -> dict[str, Any]:
    """Return milliseconds a step between kernels by length of the gap, and the longest with what is before and after.

    Args:
        ran: when each kernel began and ended, in microseconds, and its name.
    """
    lengths: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    longest: list[tuple[float, str, str]] = []
    over, before = 0.0, ""
    for start, end, name in sorted(ran):
        if before and start > over:
            found = lengths[next(f"below {most} us" for most in _GAPS if start - over < most)]
            found[0], found[1] = found[0] + (start - over) / 1e3 / STEPS, found[1] + 1
            longest.append((start - over, before, name))
        if end > over:
            over, before = end, name
    longest.sort(reverse=True)
    return {
        **{name: [round(spent, 2), round(count / STEPS)] for name, (spent, count) in sorted(lengths.items())},
        "longest_us": [[round(length), before[:60], after[:60]] for length, before, after in longest[:12]],
    }


def _kind(name: str) -> str:
    """Return the kind of a kernel."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, name, re.IGNORECASE)), "other")


def _lora(found: Any) -> float:
    """Return the milliseconds a step of matrix products with an adapter's rank as one of their sizes."""
    spent = 0.0
    for event in found.key_averages(group_by_input_shape=True):
        sizes = [size for shape in event.input_shapes or [] if isinstance(shape, list) for size in shape]
        if event.key in ("aten::mm", "aten::addmm", "aten::bmm") and RANK in sizes:
            spent += event.self_device_time_total / 1e3 / STEPS
    return spent


def _wait(device: str) -> None:
    """Wait for the accelerator."""
    if device == "cuda":
        torch.cuda.synchronize()
