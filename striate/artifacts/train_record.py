"""The training record (`train.json`): trainable parameters, steps, time, memory and loss."""

from typing import Literal

from pydantic import Field

from striate.artifacts.base import Document
from striate.artifacts.region import Region


class ComponentCount(Document):
    """Parameters of one component of an LVLM (or one decoder layer), and how many of them train."""

    component: str
    total: int
    trainable: int
    tensors: int


class Trainable(Document):
    """What trains, by component and by layer, in counts."""

    method: str
    region: Region
    components: tuple[ComponentCount, ...]
    layers: tuple[ComponentCount, ...]

    @property
    def total(self) -> int:
        """Parameters of the whole model, adapters included."""
        return sum(row.total for row in self.components)

    @property
    def trainable(self) -> int:
        """Parameters that receive updates."""
        return sum(row.trainable for row in self.components)


class Resampled(Document):
    """How the layers of a region took turns: `active` open at a time, others every `every` steps, in `order`.

    `steps_open` counts the steps in which each layer was open; in each step exactly the open ones received gradients.
    """

    active: int
    every: int
    state: Literal["keep", "drop"]
    steps_open: dict[int, int]
    order: Literal["random", "moving"] = "random"


class ImageCheck(Document):
    """What a rule for image tokens cost the start model: the answers' cross entropy, in nats a token.

    `whole` is that of layers that all compute image tokens, `ruled` that by the rule, `allowed` the most that it may
    rise by; of so many samples with pictures, `held_out` ones or of the training data.
    """

    whole: float
    ruled: float
    allowed: float
    samples: int
    answer_tokens: int
    held_out: bool

    @property
    def rise(self) -> float:
        """By how much the loss rises; below 0 where it falls."""
        return self.ruled - self.whole


class ValidationRecord(Document):
    """What training measured on held-out samples: losses in nats a token and exact matches from 0 to 1, by name.

    `best_step` is the step whose measurement of `metric` was best, `kept_step` the one whose weights were
    kept; `seconds` are those of all measurements, apart from training's.
    """

    visual_samples: int
    text_samples: int
    metric: str
    first: dict[str, float]
    last: dict[str, float]
    best: dict[str, float]
    best_step: int
    kept_step: int
    stopped_early: bool
    seconds: float


class SourceSeen(Document):
    """What a training saw of one place of `data.train`: how many different samples of how many, and how many epochs."""

    name: str
    samples: int
    seen: int
    epochs: float


class TrainRecord(Document):
    """How a training run went (`train.json`); `tokens` are those of its samples, `padding` is a share of all slots.

    `lr` is the learning rate of the region's layers at its highest; None without layers.
    `skipped` says which broken samples were left out at a step, and why (`data.broken`): by their ids, after their
    source where there are several. `whole_steps` counts the steps in which all layers computed image tokens where these
    skip some otherwise, and `image_check` says what that cost before training. `sources` says what the weights that
    were kept saw of each of these.
    """

    version: Literal[1] = 1
    trainable: Trainable
    proof: str
    samples: int
    steps: int
    epochs: float
    first_loss: float
    last_loss: float
    seconds: float
    peak_memory_gib: float
    lr: float | None = None
    tokens: int = 0
    padding: float = 0.0
    resampled: Resampled | None = None
    whole_steps: int | None = None
    image_check: ImageCheck | None = None
    skipped: dict[str, str] = Field(default_factory=dict)
    validation: ValidationRecord | None = None
    sources: tuple[SourceSeen, ...] = ()

    @property
    def weights_step(self) -> int:
        """The step whose weights were kept: the last one, unless validation chose another."""
        return self.validation.kept_step if self.validation else self.steps
