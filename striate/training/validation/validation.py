"""Validation as a training has it: measures when it is due, says what came out, and stops what has diverged."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import nn

from striate.errors import DivergedError, TrainingError
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
        pictured, texts = self.held_out.counts
        missing = {"visual": not pictured, "text": not texts}
        if missing.get(self.watch.metric.partition("_")[0]):
            raise TrainingError(
                f"train.metric_for_best_model is {self.watch.metric}, and of {pictured + texts} held-out samples"
                f" {pictured} have a picture",
                "held-out samples of the kind that is measured",
                f"use --set train.metric_for_best_model={LOSS} or {EXACT}, or add such samples to data.validate",
            )

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
