"""Deferred metrics: loss and gradient norm are copied asynchronously and logged a step later, without a GPU sync."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Facts:
    """What is known of a step when its work has been handed out: its number, learning rates, other keys of its line.

    `tokens`, those of samples and those with padding, are put among the other keys when the loss is read: counted over
    several processes they are not known before. Tensors among the other keys are read then too.
    """

    step: int
    lr: float
    projector_lr: float
    more: dict[str, Any]
    at: float
    tokens: tuple[int, int] | torch.Tensor | None = None


Write = Callable[[Facts, float, float | None], None]


class DeferredMetrics:
    """Hands on the loss and gradient norm of each step, in order, `late` steps later.

    To read a number at once is to wait until the accelerator has nothing left to do (a GPU sync), so that the next
    step's kernels reach it late. One step later it has been copied to the CPU while the next step was launched.
    """

    def __init__(self, write: Write, late: int = 0) -> None:
        """Call `write(facts, loss, gradient norm)` for each step."""
        self._write, self._late = write, late
        self._waiting: deque[tuple[Facts, torch.Tensor, torch.cuda.Event | None, float | None]] = deque()

    def add(self, facts: Facts, loss: torch.Tensor, norm: torch.Tensor | float | None) -> None:
        """Take a step's numbers as they will be, and hand on those of the step before that are due."""
        # With sharded weights the norm lies on all ranks, each of which comes here.
        norm = norm.full_tensor() if isinstance(norm, torch.Tensor) and hasattr(norm, "full_tensor") else norm
        known_norm = None if norm is None or isinstance(norm, torch.Tensor) else float(norm)
        numbers = (loss, facts.tokens, *facts.more.values(), norm)
        tensors = [value for value in numbers if isinstance(value, torch.Tensor)]
        doubles = [tensor.detach().double().flatten() for tensor in tensors]
        values = torch.cat([part.to(loss.device, non_blocking=True) for part in doubles])
        event = None
        if values.device.type == "cuda":
            host = torch.empty(len(values), dtype=torch.float64, pin_memory=True)
            values = host.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._waiting.append((facts, values, event, known_norm))
        while len(self._waiting) > self._late:
            self._read(None)

    def flush(self, ended: float | None = None) -> None:
        """Wait for all steps and hand their numbers on; the last one ended now, if not when `ended` says."""
        while self._waiting:
            self._read((ended or time.perf_counter()) if len(self._waiting) == 1 else None)

    def _read(self, now: float | None) -> None:
        """Hand the oldest step's numbers on; it ended `now`, or when its work had been handed out."""
        facts, values, event, known_norm = self._waiting.popleft()
        if event:
            event.synchronize()
        loss, *rest = values.tolist()
        tokens: Any = facts.tokens
        if isinstance(tokens, torch.Tensor):
            tokens, rest = [int(count) for count in rest[:2]], rest[2:]
        if tokens is not None:
            facts = replace(facts, more={**facts.more, **dict(zip(("tokens", "slots"), tokens, strict=True))})
        unread = [name for name, value in facts.more.items() if isinstance(value, torch.Tensor)]
        read, rest = dict(zip(unread, rest, strict=False)), rest[len(unread) :]
        facts = replace(facts, more={**facts.more, **read}, at=facts.at if now is None else now)
        self._write(facts, loss, rest[0] if rest else known_norm)
