"""How a pruned model was healed (`heal.json`), and the check that the saved model reloads."""

from typing import Literal

from pydantic import Field

from striate.artifacts.base import Document
from striate.artifacts.prune_record import SelfTest
from striate.artifacts.train_record import Trainable


class HealRecord(Document):
    """How healing went (`heal.json`).

    Attributes:
        layers: `heal.region` as it was given; `trainable.region` are these layers, in the pruned model's numbers.
        method: `lora` (merged since) or `full`.
        lr: the highest learning rate.
        weights: of cross entropy (`ce`), divergence (`kl`) and distance of hidden states (`hidden`) in the loss.
        top_k: likeliest tokens of the teacher that the divergence is taken over; 0 without a divergence.
        samples: that were learned from.
        text_samples: those of them without a picture.
        epochs: how often each was.
        first: mean loss of the first third of the steps, and its parts as far as they were computed, by name, in nats a
            token. Earlier runs have the first step's.
        last: of the last third.
        tokens: of all samples learned from, as often as they were.
        skipped: why broken samples were left out, by their ids.
    """

    version: Literal[1] = 1
    layers: str
    method: str
    lr: float
    weights: dict[str, float]
    top_k: int
    trainable: Trainable
    proof: str
    samples: int
    text_samples: int
    steps: int
    epochs: float
    first: dict[str, float]
    last: dict[str, float]
    seconds: float
    peak_memory_gib: float
    tokens: int = 0
    skipped: dict[str, str] = Field(default_factory=dict)
    self_test: SelfTest | None = None
