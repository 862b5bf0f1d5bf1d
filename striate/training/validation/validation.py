"""Validation as a training has it: measures when it is due, says what came out, and stops what has diverged."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import nn

from striate.data.held_out import check_metric
from striate.errors import DivergedError
from striate.training.inputs.step_inputs import StepInputs
from striate.training.metrics.metrics_log import AFTER_DIVERGING
from striate.training.validation.held_out_loss import EXACT, KINDS, LOSS, HeldOutLoss
from striate.training.validation.watch import Watch


@dataclass(frozen=True)
class Validation:
    """What a training measures beside its steps.

    Attributes:
        held_out: measures.
        watch: says when, and what follows from it.
        say: told the result in one line.
    """

    held_out: HeldOutLoss
    watch: Watch
    say: Callable[[str], None]

    def check(self) -> None:
        """Return if the metric by which weights are kept will be measured.

        Raises:
            TrainingError: no held-out sample is of its kind.
        """
        check_metric(self.watch.metric, *self.held_out.counts)

    def after(
        self, step: int, model: nn.Module, inputs: StepInputs, mixed: AbstractContextManager[Any]
    ) -> dict[str, float]:
        """Return the measurement after a step; see `HeldOutLoss.measure`.

        Raises:
            DivergedError: it is not finite.
        """
        measured = self.held_out.measure(model, inputs, mixed)
        if not math.isfinite(measured["loss"]):
            raise DivergedError(
                f"training diverged at step {step}: validation loss {measured['loss']}",
                "a finite loss",
                AFTER_DIVERGING,
            )
        kinds = [kind for kind in KINDS if f"{kind}_{LOSS}" in measured]
        losses = ", ".join(f"{kind} {measured[f'{kind}_{LOSS}']:.4f}" for kind in kinds)
        right = ", ".join(f"{kind} {100 * measured[f'{kind}_{EXACT}']:.1f}%" for kind in kinds)
        whole = f"loss {measured[LOSS]:.4f} ({losses}), exact match {100 * measured[EXACT]:.1f}% ({right})"
        self.say(f"validation at step {step}: {whole}")
        return measured
