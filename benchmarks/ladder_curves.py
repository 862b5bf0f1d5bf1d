"""Losses of one training run plain, compiled, and plain with another kernel: whether the difference is rounding."""

from __future__ import annotations

import argparse
import contextlib
import statistics
from dataclasses import replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from training_rungs import RUNGS, TINY_BATCH

from striate.training.precision import FrozenModules

BATCHES = 16


def curves(kind: Any, args: argparse.Namespace, device: str) -> dict[str, Any]:
    """Return the losses of three runs from the same weights on the same batches, dropout off, and their differences.

    Plain is Hugging Face's and PEFT's modules one by one; the other plain run computes attention by another kernel.
    Their difference is what rounding does to a training; the compiled run's should be of that size.
    """
    rung = next(rung for rung in RUNGS if rung.name == "exact")
    rung = replace(rung, dropout=0.0, batch=TINY_BATCH if args.tiny else 4)
    bench = kind(rung, args, device)
    start = [parameter.detach().clone() for parameter in bench.trainable]
    batches = [_batch(bench, rung, index) for index in range(BATCHES)]
    eager = replace(rung, compiled=False)
    other = SDPBackend.EFFICIENT_ATTENTION if device == "cuda" else SDPBackend.MATH
    found = {}
    for name, one, kernels in (
        ("plain", eager, contextlib.nullcontext()),
        ("compiled", rung, contextlib.nullcontext()),
        ("plain, another attention kernel", eager, sdpa_kernel(other)),
    ):
        _reset(bench, start)
        with kernels, bench.prepared(one):
            frozen = FrozenModules(bench.model, False)
            losses = [bench.step(one, batches[step % BATCHES], frozen) for step in range(args.curves)]
        found[name] = [float(loss) for loss in losses]
    plain, compiled, again = found.values()
    return {
        "name": "curves",
        "steps": args.curves,
        "first_and_last": {name: [losses[0], losses[-1]] for name, losses in found.items()},
        "mean_difference_compiled": _mean(plain, compiled),
        "mean_difference_of_plain_runs": _mean(plain, again),
        "largest_difference_compiled": max(abs(a - b) for a, b in zip(plain, compiled, strict=True)),
        "largest_difference_of_plain_runs": max(abs(a - b) for a, b in zip(plain, again, strict=True)),
        "bias_compiled": statistics.fmean(b - a for a, b in zip(plain, compiled, strict=True)),
        "bias_of_plain_runs": statistics.fmean(b - a for a, b in zip(plain, again, strict=True)),
        "losses": {name: [round(loss, 5) for loss in losses] for name, losses in found.items()},
    }


def _batch(bench: Any, rung: Any, index: int) -> dict[str, Any]:
    """Return one of the batches: tokens that repeat within a sample, so that there is something to learn."""
    batch: dict[str, Any] = bench.batch(rung)
    generator = torch.Generator().manual_seed(index)
    ids = batch["input_ids"]
    text = batch["labels"] != -100
    period = torch.randint(10, 900, (ids.shape[0], 8), generator=generator).to(ids.device)
    pattern = period.repeat(1, ids.shape[1] // 8 + 1)[:, : ids.shape[1]]
    batch["input_ids"] = torch.where(text, pattern, ids)
    batch["labels"] = torch.where(text, pattern, -100)
    return batch


def _reset(bench: Any, start: list[torch.Tensor]) -> None:
    """Put the trained weights and the optimizer back to the start."""
    for parameter, value in zip(bench.trainable, start, strict=True):
        parameter.data.copy_(value)
    bench.optimizer.state.clear()


def _mean(one: list[float], other: list[float]) -> float:
    """Return the mean absolute difference."""
    return statistics.fmean(abs(a - b) for a, b in zip(one, other, strict=True))
