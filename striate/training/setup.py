"""A model made ready to train: the chosen parameters open, in the modes of training, and its proof."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import peft
import torch
from torch import nn

from striate.artifacts import Region, Trainable
from striate.config import TrainSection
from striate.data.collate import Collator
from striate.data.samples import Sample
from striate.models.trainable.apply import apply_region, lora_config, prove_trainable
from striate.training.approximations import begin_skipping, end_skipping
from striate.training.lisa import LisaSchedule
from striate.training.precision import MasterWeights


@dataclass(frozen=True)
class Opened:
    """A model while it trains.

    Attributes:
        model: with exactly the chosen parameters open; wrapped by PEFT for LoRA.
        region: which layers train.
        trainable: how many parameters are open.
        names: theirs.
        weights: the float32 copies that train in the place of half-precision ones.
        turns: which layers are open in each step; None leaves the whole region open.
        collator: makes the batch of the proof.
        example: the sample of the proof.
        train_projector: whether the projector is among what trains.
    """

    model: Any
    region: Region
    trainable: Trainable
    names: set[str]
    weights: MasterWeights
    turns: LisaSchedule | None
    collator: Collator
    example: Sample
    train_projector: bool

    def prove(self, prepared: nn.Module) -> str:
        """Return the proof of what trains: of the whole region at once, or of as many layers at a time as train so.

        Raises:
            TrainingError: a chosen tensor gets no gradient, or another one gets some.
        """
        batch = self.collator([self.example])
        if self.turns is None:
            return prove_trainable(prepared, self.region, batch, train_projector=self.train_projector)
        proofs = [
            prove_trainable(
                prepared, self.region.model_copy(update={"layers": layers}), batch, train_projector=self.train_projector
            )
            for layers in self.turns.open_each_set()
        ]
        sets = f"{len(self.region)} layers, proved in {len(proofs)} sets that were open one after another"
        return f"{sets}; the first: {proofs[0]}"


@contextmanager
def opened(
    model: Any,
    region: Region,
    samples: Sequence[Sample],
    collator: Collator,
    config: TrainSection,
    *,
    seed: int,
    base_path: str,
) -> Iterator[Opened]:
    """Yield the model open for training; afterwards it is in eval mode, and its weights have their own formats.

    Raises:
        TrainingError: nothing to train, or the model computes image tokens by another rule.
        ModelError: the rule of `config.image_tokens` can't hold for this model.
    """
    tuned, trainable = _open(model, region, config, base_path)
    turns = LisaSchedule(tuned, region, config.resample, seed) if config.resample.active else None
    names = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    weights = MasterWeights(tuned)
    example = next((sample for sample in samples if sample.images), samples[0])
    device = next(tuned.parameters()).device
    # What trains is in float32 by now, and meets half precision as it will in training.
    with torch.autocast(device.type, weights.dtype or torch.bfloat16, enabled=weights.dtype is not None):
        begin_skipping(tuned, region, samples, collator, config)
    try:
        yield Opened(tuned, region, trainable, names, weights, turns, collator, example, config.train_projector)
    finally:
        end_skipping(tuned, config)
        weights.restore()
        tuned.eval()


def _open(model: Any, region: Region, config: TrainSection, base_path: str) -> tuple[Any, Trainable]:
    """Return the model with exactly the chosen parameters open, wrapped by PEFT for LoRA, and what they are."""
    if config.method == "full":
        return model, apply_region(model, region, "full", config.train_projector)
    lora = lora_config(
        model,
        region,
        r=config.lora.r,
        alpha=config.lora.alpha,
        dropout=config.lora.dropout,
        train_projector=config.train_projector,
    )
    with warnings.catch_warnings():
        # peft asks transformers 5.2x for a property that it renames.
        warnings.simplefilter("ignore", FutureWarning)
        tuned = peft.get_peft_model(model, lora)
    tuned.peft_config["default"].base_model_name_or_path = base_path
    return tuned, apply_region(tuned, region, config.method, config.train_projector)
