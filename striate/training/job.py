"""What a training is made of, as its parts are handed it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from striate.artifacts import Region
from striate.config import MachineSection, TrainSection
from striate.data.collate import Collator
from striate.data.mixing import SampleSources
from striate.data.samples import Sample
from striate.training.loss import Objective
from striate.training.schedule import Plan


@dataclass(frozen=True)
class TrainingJob:
    """One training.

    Attributes:
        region: which decoder layers train.
        samples: the training set.
        collator: encodes and joins samples.
        config: the science.
        machine: the machine, apart from it.
        seed: of the order of samples, of the adapters' first values and of dropout.
        base_path: where the base model is, as the adapter names it.
        plan: how many steps of how many samples.
        held_out: what validation measures.
        objective: what is minimised; the answer loss where nothing is given.
        sources: where the samples come from, if that is to be recorded.
    """

    region: Region
    samples: Sequence[Sample]
    collator: Collator
    config: TrainSection
    machine: MachineSection
    seed: int
    base_path: str
    plan: Plan
    held_out: Sequence[Sample] = ()
    objective: Objective = field(default_factory=Objective)
    sources: SampleSources | None = None

    def name_of(self, index: int) -> str:
        """Return what records call a sample: its id, after its source where there are several."""
        sample_id = self.samples[index].id
        return self.sources.name_of(index, sample_id) if self.sources else sample_id
