"""The run config: one strict, frozen document a run, one section a stage, machine settings apart."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from striate.config.evaluate_settings import EvaluateSection, ReportSection
from striate.config.heal_settings import HealSection
from striate.config.inputs import DataSection, ModelSection
from striate.config.layer_settings import BY_PLACE, GREEDY, AnalyzeSection, PruneSection, SelectSection
from striate.config.machine import MachineSection
from striate.config.section import Section
from striate.config.train_settings import TrainSection

OWN_MODELS = ("start", "tuned", "unhealed", "pruned")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._%:+@-]{0,63}")


class RunConfig(Section):
    """One run, whole: what `striate run RUN.yaml` reads and `config.yaml` in the run folder keeps."""

    version: Literal[1] = 1
    seed: int = Field(default=0, ge=0, lt=2**32)
    model: ModelSection
    data: DataSection
    analyze: AnalyzeSection = AnalyzeSection()
    select: SelectSection = SelectSection()
    train: TrainSection = TrainSection()
    prune: PruneSection = PruneSection()
    heal: HealSection = HealSection()
    evaluate: EvaluateSection = EvaluateSection()
    report: ReportSection = ReportSection()
    machine: MachineSection = MachineSection()

    @model_validator(mode="after")
    def _check_training(self) -> RunConfig:
        if self.train.method == "qlora" and self.machine.dtype not in ("auto", "bfloat16"):
            raise ValueError(f"train.method qlora computes in bfloat16, not in machine.dtype {self.machine.dtype}")
        watched = [name for name, holds in self.train.on_validation.items() if holds]
        if watched and not self.data.validate:
            raise ValueError(
                f"train.{watched[0]} follows from held-out samples, and data.validate is not set: give a share of the"
                " training data such as 2%, or a file of samples"
            )
        if self.machine.memory_budget is not None and self.train.gradient_checkpointing:
            raise ValueError(
                "machine.memory_budget and train.gradient_checkpointing are both set, and that recomputes every layer"
            )
        if self.train.vision != "frozen" and self.machine.cache_vision != "off":
            raise ValueError(
                f"machine.cache_vision is {self.machine.cache_vision} and train.vision {self.train.vision}: features of"
                " an encoder that trains change with every step; use machine.cache_vision=off"
            )
        return self

    @model_validator(mode="after")
    def _check_pruning(self) -> RunConfig:
        if self.prune.needs_scores and self.prune.scorer not in self.analyze.scorers:
            raise ValueError(
                f"prune.scorer {self.prune.scorer!r} is none of {', '.join(GREEDY + BY_PLACE)}, nor among"
                f" analyze.scorers {list(self.analyze.scorers)}"
            )
        if self.prune.until and not self.prune.remove:
            raise ValueError(
                "prune.until is set, but prune.remove is 0: set the most layers that may go there, such as 50% or 100%"
            )
        if self.prune.until and self.prune.first:
            raise ValueError(
                "prune.until holds smaller models against the tuned one, and with prune.when before there is none: use"
                " prune.when after"
            )
        if self.prune.first and self.heal.on:
            raise ValueError(
                "heal is set, and prune.when is before: the tuning that follows is the healing; leave out heal.steps"
                " and heal.share, or use prune.when: after"
            )
        return self

    @model_validator(mode="after")
    def _check_evaluation(self) -> RunConfig:
        evaluated = (*self.evaluate.models, *self.evaluate.others)
        if self.evaluate.packs and self.evaluate.baseline not in evaluated:
            raise ValueError(
                f"evaluate.baseline {self.evaluate.baseline!r} is not among evaluate.models and evaluate.others:"
                f" {', '.join(evaluated)}"
            )
        for name in self.evaluate.others:
            if name in OWN_MODELS or not NAME.fullmatch(name):
                raise ValueError(
                    f"evaluate.others: {name!r} is no name for a model: letters, digits, '-', '_', '.', '%', ':', '+',"
                    f" '@' and spaces, and not one of {', '.join(OWN_MODELS)}"
                )
        if self.evaluate.gate and not self.evaluate.packs:
            raise ValueError("evaluate.gate is set, but evaluate.packs is empty: nothing would be measured")
        compared = {*evaluated} - {self.evaluate.baseline} - (set() if self.prune.remove else {"pruned"})
        if self.evaluate.gate and not compared:
            raise ValueError("evaluate.gate is set, but only the baseline is evaluated: the gate would hold always")
        if self.prune.until and not (self.prune.until_packs or self.evaluate.packs):
            raise ValueError(
                "prune.until is set, but prune.until_packs and evaluate.packs are empty: nothing would be measured"
            )
        if self.evaluate.baseline == "pruned" and not self.prune.remove:
            raise ValueError("evaluate.baseline is 'pruned', but prune.remove is 0: there is no pruned model")
        if self.evaluate.baseline == "unhealed" and not self.heals:
            raise ValueError("evaluate.baseline is 'unhealed', but nothing is healed: set heal.share or heal.steps")
        return self

    @property
    def heals(self) -> bool:
        """Whether the run has a pruned model that is healed."""
        return bool(self.prune.remove) and self.heal.on
