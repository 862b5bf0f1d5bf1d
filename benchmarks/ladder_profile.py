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
    for event in found.events():
        # The compiler and optimizers mark whole spans on the device's timeline too; they aren't kernels.
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith(_MARKS):
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
        "kernels_a_step": sum(counts.values()) // STEPS,
        "kinds_ms": {name: round(spent, 2) for name, spent in sorted(kinds.items(), key=lambda item: -item[1])},
        "lora_products_ms": round(_lora(found), 2),
        "longest_ms": {name[:110]: [round(spent, 2), counts[name] // STEPS] for name, spent in longest},
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
