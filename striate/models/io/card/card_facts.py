"""What a model card tells of a checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass

from striate.artifacts import Difference, EvalRecord, HealRecord, PruneRecord, Region, SourceSeen
from striate.config import RunConfig


@dataclass(frozen=True)
class Seen:
    """How many different samples a training read, out of how many, and how often it went through all of them."""

    samples: int
    of: int
    epochs: float

    @classmethod
    def after(cls, steps: int, samples: int, batch_size: int, left_out: int = 0) -> Seen:
        """Return what `steps` steps of `batch_size` read of `samples`, of which `left_out` were broken.

        Every epoch reads each sample once, and its last step what is left.
        """
        per_epoch = max(1, math.ceil(samples / batch_size))
        read = samples if steps >= per_epoch else steps * batch_size
        return cls(max(0, read - left_out), samples, steps / per_epoch)


@dataclass(frozen=True)
class CardFacts:
    """What a card tells; whatever is not known yet is None or empty.

    Attributes:
        base: the model that this one was made from, a hub id or a folder.
        method: how the region was trained: `lora`, `qlora`, `full`; empty where nothing was.
        region: in the layer numbers of the base.
        trained: trained parameters and all parameters.
        seen: of how many samples it learned.
        lr: the learning rate of the region's layers.
        sources: what it saw of each place of its training data.
        adapter: whether the folder holds an adapter, which needs its base.
        kind: of an adapter of whose training nothing else is known, such as `lora`.
        merged: the number format of a model whose adapter was added into its weights.
        prune: which layers are gone.
        heal: how the pruned model was trained since.
        evaluation: scores of this model.
        differences: paired comparisons of this model with a baseline.
        config: of the run.
        named: what a person calls the base where its folder has another name: `builtin`.
        licence: of the base where its own card is not on this disk.
    """

    base: str
    method: str
    region: Region | None
    trained: tuple[int, int] | None = None
    seen: Seen | None = None
    lr: float | None = None
    sources: tuple[SourceSeen, ...] = ()
    adapter: bool = False
    kind: str = ""
    merged: str = ""
    prune: PruneRecord | None = None
    heal: HealRecord | None = None
    evaluation: EvalRecord | None = None
    differences: tuple[Difference, ...] = ()
    config: RunConfig | None = None
    named: str = ""
    licence: str | None = None
