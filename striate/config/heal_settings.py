"""Settings of healing: training after pruning, of which layers, for how long, and by which loss."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from striate.config.learning_rate import AUTO, Rate, healing_rate, number_or_auto
from striate.config.section import MOST, LayerSpec, Section
from striate.config.train_settings import ResampleSection, TrainSection

# Regions that have no SPEC: they follow from the region and from what was removed.
REGION, BESIDE = "region", "beside"
_VISION = ("vision", "vision_lr", "vision_layers")
_EARLY = ("early_stopping_patience", "early_stopping_threshold")


class HealSection(Section):
    """Healing: training after pruning, only where `steps` or `share` is set.

    `share` is how much of the training data is learned from, once: 5% or 0.05. `region` is which layers of the pruned
    model train: `region` (the visual region), `beside` (kept layers next to removed ones), `all`, or a SPEC. `method`
    is that of train where nothing is set; `lr` is that of train for adapters and a quarter of it for full weights
    (`auto`), that of train in any case (none), or a number; batch size, optimizer, schedule, length and LoRA are
    train's. The loss is `ce` times the cross entropy, plus `kl` times the divergence from the `top_k` likeliest tokens
    of the tuned model, plus `hidden` times the distance of last hidden states. `text` is the share of samples without
    a picture, drawn from the training data and from `text_data`.
    """

    steps: int | None = Field(default=None, ge=1, le=MOST)
    share: float | None = Field(default=None, gt=0, le=1)
    region: LayerSpec = REGION
    method: Literal["lora", "full"] | None = None
    lr: Rate | None = AUTO
    ce: float = Field(default=1.0, ge=0, le=1_000_000)
    kl: float = Field(default=1.0, ge=0, le=1_000_000)
    hidden: float = Field(default=0.0, ge=0, le=1_000_000)
    top_k: int = Field(default=100, ge=1, le=10_000_000)
    text: float = Field(default=0.25, ge=0, le=1)
    text_data: tuple[str, ...] = ()

    @field_validator("share", "text", mode="before")
    @classmethod
    def _percent(cls, value: Any) -> Any:
        """Return the share that a percentage stands for."""
        if not (isinstance(value, str) and value.strip().endswith("%")):
            return value
        try:
            return float(value.strip().removesuffix("%")) / 100
        except ValueError:
            return value

    @field_validator("lr", mode="before")
    @classmethod
    def _rate(cls, value: Any) -> Any:
        return None if value is None else number_or_auto(value)

    @model_validator(mode="after")
    def _check(self) -> HealSection:
        if self.steps is not None and self.share is not None:
            raise ValueError("steps and share are both set, and each says how long healing takes: leave one out")
        if not (self.ce or self.kl or self.hidden):
            raise ValueError("ce, kl and hidden are all 0: there is nothing to learn")
        return self

    @property
    def on(self) -> bool:
        """Whether a pruned model is healed."""
        return self.steps is not None or self.share is not None

    @property
    def needs_teacher(self) -> bool:
        """Whether something of the tuned model is learned."""
        return self.kl > 0 or self.hidden > 0

    def how(self, train: TrainSection) -> Literal["lora", "full"]:
        """Return the method that heals what was tuned with the settings `train`."""
        return self.method or ("full" if train.method == "full" else "lora")

    def rate(self, train: TrainSection) -> Rate:
        """Return the learning rate that heals what was tuned so; `auto` beside `auto` is no number yet."""
        if self.lr is None or train.lr == AUTO:
            return self.lr or train.lr
        return healing_rate(self.how(train), train.lr) if self.lr == AUTO else self.lr

    def training(self, train: TrainSection) -> TrainSection:
        """Return the settings of training that heal: those of `train`, but of one pass or `steps`, and without modes.

        All layers are open in every step, frozen ones are held exactly; where image tokens are computed is the model's.
        The vision encoder is frozen. Nothing is measured meanwhile: the last step's weights are kept.
        """
        defaults = ("validate_every", "keep", "metric_for_best_model", *_EARLY, *_VISION)
        method = self.how(train)
        own = {
            "method": method,
            # Full weights and adapters are no one checkpoint.
            "projector": "full" if method == "full" and train.projector == "lora" else train.projector,
            "lr": self.rate(train),
            "epochs": 1.0,
            "max_steps": self.steps,
            "resample": ResampleSection(),
            "frozen": "exact",
            "image_tokens": "all",
            "image_also": "none",
            "image_whole_every": 0,
            **{name: TrainSection.model_fields[name].default for name in defaults},
        }
        return train.model_copy(update=own)
