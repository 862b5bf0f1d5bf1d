"""What `striate find-lr` found (`find_lr.json`)."""

from __future__ import annotations

from typing import Literal

from striate.artifacts.base import Document
from striate.artifacts.region import Region


class RateTrial(Document):
    """One short training: its learning rate, and what was measured of held-out samples after its last step.

    `measured` is as in `train_log.jsonl`; it is empty where the training diverged, which `diverged` then says.
    """

    lr: float
    measured: dict[str, float]
    last_loss: float | None
    diverged: str
    seconds: float


class RateSearch(Document):
    """Short trainings of one region that differ by their learning rate alone.

    Attributes:
        key: what they follow from.
        metric: of held-out samples, by which rates are compared.
        region: the layers that train.
        method: `lora`, `qlora` or `full`.
        projector_lr: of all trials.
        steps: of each, with a whole schedule of warm-up and decay.
        whole_steps: of the run's own training.
        visual_samples: held-out samples with a picture.
        text_samples: held-out samples without one.
        own: whether the run holds them out too (`data.validate`), and does not learn from them.
        budget_seconds: what was asked for.
        trials: in the order of rates.
        best: the rate that is best by the metric; None where all diverged, or some are still to be tried.
        open_end: whether the best rate is the lowest or the highest that was tried: a better one may lie beyond.
    """

    version: Literal[1] = 1
    key: str
    metric: str
    region: Region
    method: str
    projector_lr: float
    steps: int
    whole_steps: int
    visual_samples: int
    text_samples: int
    own: bool
    budget_seconds: float
    trials: tuple[RateTrial, ...] = ()
    best: float | None = None
    open_end: bool = False
