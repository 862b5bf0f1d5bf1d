"""Prepares a model for training: opens the region, adds LoRA, makes float32 masters; restores it afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import peft
import torch
from torch import nn

from striate.artifacts import ImageCheck, Region, Trainable
from striate.config import TrainSection
from striate.data.checks.broken_samples import usable
from striate.data.packing import Batch
from striate.models.io.weights.adapter_names import check_adapter_names
from striate.models.trainable.apply import apply_region
from striate.models.trainable.beside import Beside
from striate.models.trainable.gradient_proof import prove_trainable
from striate.training.approximations import begin_skipping, end_skipping
from striate.training.job import TrainingJob
from striate.training.lisa import LisaSchedule
from striate.training.precision import MasterWeights
from striate.training.what_trains import adapters_of, beside_of

# So many that one of them can be used, whatever is broken.
_EXAMPLES = 16


@dataclass(frozen=True)
class PreparedModel:
    """A model while it trains.

    Attributes:
        model: with exactly the chosen parameters open; wrapped by PEFT for LoRA.
        region: which layers train.
        trainable: how many parameters are open.
        names: theirs.
        weights: the float32 masters of half-precision weights.
        lisa: which layers are open in each step; None leaves the whole region open.
        batch: makes the batch of the proof.
        beside: what trains beside the region.
        image_check: what a rule for image tokens costs the start model; None where there is none, or not measured.
    """

    model: Any
    region: Region
    trainable: Trainable
    names: set[str]
    weights: MasterWeights
    lisa: LisaSchedule | None
    batch: Callable[[], Batch]
    beside: Beside
    image_check: ImageCheck | None = None

    @property
    def half(self) -> torch.dtype | None:
        """The half-precision type that the model computes in, if any."""
        return self.weights.dtype

    def autocast(self) -> torch.autocast:
        """Return a context in which what trains in float32 meets half precision as it does in training."""
        device = next(self.model.parameters()).device
        return torch.autocast(device.type, self.half or torch.bfloat16, enabled=self.half is not None)

    def prove(self, model: nn.Module) -> str:
        """Return the proof of what trains: of the whole region at once, or of as many layers at a time as train so.

        Raises:
            TrainingError: a chosen tensor gets no gradient, or another one gets some.
        """
        batch = self.batch()
        if self.lisa is None:
            return prove_trainable(model, self.region, batch, self.beside)
        proofs = [
            prove_trainable(model, self.region.model_copy(update={"layers": layers}), batch, self.beside)
            for layers in self.lisa.open_each_set()
        ]
        sets = f"{len(self.region)} layers, proved in {len(proofs)} sets that were open one after another"
        return f"{sets}; the first: {proofs[0]}"


@contextmanager
def prepared_for_training(model: Any, job: TrainingJob) -> Iterator[PreparedModel]:
    """Yield the model open for training; afterwards it is in eval mode, and its weights have their own formats.

    Raises:
        TrainingError: nothing to train, the model computes image tokens by another rule, or one costs too much.
        ModelError: the rule of `config.image_tokens` can't hold for this model.
    """
    config, region, samples = job.config, job.region, job.samples
    torch.manual_seed(job.seed)
    beside = beside_of(model, config)
    tuned, trainable = _open(model, region, config, beside, job.base_path)
    pictured = list(islice((sample for sample in samples if sample.images), _EXAMPLES))
    example = usable(job.collator, pictured or samples[:_EXAMPLES])[0]
    prepared = PreparedModel(
        model=tuned,
        region=region,
        trainable=trainable,
        names={name for name, parameter in tuned.named_parameters() if parameter.requires_grad},
        weights=MasterWeights(tuned),
        lisa=LisaSchedule(tuned, region, config.resample, job.seed) if config.resample.active else None,
        batch=lambda: job.collator([example]),
        beside=beside,
    )
    try:
        with prepared.autocast():
            check = begin_skipping(tuned, region, samples, job.collator, config, job.held_out)
        yield replace(prepared, image_check=check)
    finally:
        end_skipping(tuned, config)
        prepared.weights.restore()
        tuned.eval()


def _open(model: Any, region: Region, config: TrainSection, beside: Beside, base_path: str) -> tuple[Any, Trainable]:
    """Return the model with exactly the chosen parameters open, wrapped by PEFT for LoRA, and what they are."""
    tuned = model
    if config.method != "full":
        lora = adapters_of(model, region, config)
        with warnings.catch_warnings():
            # peft asks transformers 5.2x for a property that it renames.
            warnings.simplefilter("ignore", FutureWarning)
            tuned = peft.get_peft_model(model, lora)
        tuned.peft_config["default"].base_model_name_or_path = base_path
        check_adapter_names(tuned)
    return tuned, apply_region(
        tuned,
        region,
        config.method,
        beside.projector,
        vision=beside.vision,
        vision_region=beside.vision_region,
    )
