"""Callbacks of a region's training: proofs before the first step, LISA's turns, and the log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from striate.training.distributed.gradient_sync import GradientSync
from striate.training.lisa import OPEN_LAYERS, LisaSchedule
from striate.training.metrics.async_metrics import DeferredMetrics, Facts
from striate.training.metrics.metrics_log import MetricsLog
from striate.training.whole_steps import WholeSteps

Proof = Callable[[nn.Module], str]


class ProofCallback(TrainerCallback):
    """Proves what trains before the first step, with weights and modes as training has them.

    Attributes:
        proof: what the proofs said.
    """

    def __init__(self, proofs: Sequence[Proof], enter_modes: Callable[[], None]) -> None:
        """Take proofs, each called with the prepared model once `enter_modes` has set modules to train or not."""
        self._proofs, self._enter_modes = proofs, enter_modes
        self.proof = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Run the proofs; then each process's dropout is its own."""
        self._enter_modes()
        self.proof = " ".join(proof(kwargs["model"]) for proof in self._proofs)
        if args.process_index:
            # Every process begins with the same weights; from here on its dropout is its own.
            torch.manual_seed(args.seed * 1_000_003 + args.process_index)


class LisaCallback(TrainerCallback):
    """Opens the layers whose turn a step is (LISA, arXiv 2403.17919)."""

    def __init__(self, schedule: LisaSchedule, sync: GradientSync | None, on_turn: Callable[[], None]) -> None:
        """Take the schedule, what averages gradients where there are several processes, and what hears of a turn."""
        self._schedule, self._sync, self._on_turn = schedule, sync, on_turn

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give every process the first one's values."""
        if self._sync:
            self._sync.broadcast_parameters()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the layers of the coming step."""
        if self._schedule.open_for_step(state.global_step, kwargs["optimizer"]):
            self._on_turn()

    def after_backward(self) -> None:
        """Check that the open layers alone have gradients, and average these over the processes."""
        self._schedule.check_gradients()
        if self._sync:
            self._sync.average_gradients()


class WholeStepsCallback(TrainerCallback):
    """Lets all layers compute image tokens in the steps that are so (`train.image_whole_every`)."""

    def __init__(self, steps: WholeSteps, on_turn: Callable[[], None]) -> None:
        """Take which steps these are, and what hears that layers compute otherwise than before."""
        self._steps, self._on_turn = steps, on_turn

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the coming step compute as it shall."""
        if self._steps.enter(state.global_step + 1):
            self._on_turn()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Follow the rule again: what is measured or saved between steps is the model's own."""
        if self._steps.leave():
            self._on_turn()


class MetricsCallback(TrainerCallback):
    """Notes the learning rates of each step, and logs its numbers once they are there."""

    def __init__(
        self,
        log: MetricsLog,
        schedule: LisaSchedule | None,
        advance: Callable[[int], None],
        *,
        late: int,
        fp16: bool,
        report: Callable[[Mapping[str, Any]], None] = lambda row: None,
    ) -> None:
        """Write to `log`, `late` steps late; `advance` is called with 1 after every step, `report` with its row."""
        self._report = report
        self._log, self._schedule, self._advance, self._fp16 = log, schedule, advance, fp16
        self._metrics = DeferredMetrics(self._write, late)
        self._rates: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock of the first step."""
        self._log.start()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the learning rates that the coming update uses."""
        self._rates = {group["name"]: group["lr"] for group in kwargs["optimizer"].param_groups}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the steps whose numbers have not been read yet."""
        self.flush()

    def add(
        self,
        step: int,
        loss: torch.Tensor,
        norm: Any,
        tokens: tuple[int, int] | torch.Tensor,
        more: Mapping[str, Any] | None = None,
        at: float | None = None,
    ) -> None:
        """Take the numbers of a step whose work was handed out now or `at` a time, unread, and `more` of its line."""
        rates = self._rates.get("region", 0.0), self._rates.get("projector", 0.0)
        keys: dict[str, Any] = {OPEN_LAYERS: list(self._schedule.open_layers)} if self._schedule else {}
        keys |= {"vision_lr": self._rates["vision"]} if "vision" in self._rates else {}
        facts = Facts(step, *rates, keys | {**(more or {})}, at or time.perf_counter(), tokens)
        self._metrics.add(facts, loss, norm)

    def flush(self, ended: float | None = None) -> None:
        """Wait for all steps and log them; the last one ended now, if not when `ended` says."""
        self._metrics.flush(ended)

    def _write(self, facts: Facts, loss: float, norm: float | None) -> None:
        """Write one step to the log.

        Raises:
            TrainingError: loss or gradient is not finite.
        """
        norm = 0.0 if norm is None else norm
        # The gradient scaler of float16 skips a step that overflows, and halves its scale.
        norm = None if self._fp16 and not math.isfinite(norm) else norm
        self._log.write(facts.step, loss, norm, facts.lr, facts.projector_lr, now=facts.at, **facts.more)
        self._report(self._log.rows[-1])
        self._advance(1)
