"""Validation as a training has it: measures when it is due, says what came out, and stops what has diverged."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import nn

from striate.errors import TrainingError
from striate.training.inputs.step_inputs import StepInputs
from striate.training.metrics.metrics_log import AFTER_DIVERGING
from striate.training.validation.held_out_loss import HeldOutLoss
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
        missing = {"visual_loss": not pictured, "text_loss": not texts}
        if missing.get(self.watch.metric):
            raise TrainingError(
                f"train.metric_for_best_model is {self.watch.metric}, and of {pictured + texts} held-out samples"
                f" {pictured} have a picture",
                "held-out samples of the kind that is measured",
                "use --set train.metric_for_best_model=loss, or add such samples to data.validate",
            )

    def after(
        self, step: int, model: nn.Module, inputs: StepInputs, mixed: AbstractContextManager[Any]
    ) -> dict[str, float]:
        """Return the measurement after a step; see `HeldOutLoss.measure`.

        Raises:
            TrainingError: it is not finite.
        """
        measured = self.held_out.measure(model, inputs, mixed)
        if not math.isfinite(measured["loss"]):
            raise TrainingError(
                f"training diverged at step {step}: validation loss {measured['loss']}",
                "a finite loss",
                AFTER_DIVERGING,
            )
        parts = [f"{kind} {measured[f'{kind}_loss']:.4f}" for kind in ("visual", "text") if f"{kind}_loss" in measured]
        self.say(f"validation at step {step}: loss {measured['loss']:.4f} ({', '.join(parts)})")
        return measured
