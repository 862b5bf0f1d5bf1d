"""Settings of training: method, LoRA, LISA, optimizer, schedule, packing and number formats."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from striate.config.learning_rate import AUTO, FLOAT32, Rate, auto_rate, number_or_auto
from striate.config.section import MOST, LayerSpec, Section

Metric = Literal["loss", "visual_loss", "text_loss", "exact_match", "visual_exact_match", "text_exact_match"]
Rank = Annotated[int, Field(ge=1, le=65_536)]
Alpha = Annotated[int, Field(ge=1, le=1_000_000)]


class LoraSection(Section):
    """LoRA of the projection matrices of the region's layers; defaults are the paper's.

    `modules` says which of them get adapters: `all`, `attention`, `mlp`, names such as `q_proj`, or several joined by
    `+`, such as `gate+up`. `use_rslora` scales by alpha / sqrt(r), `use_dora` trains the size of each output apart from
    its direction, and `rank_pattern` and `alpha_pattern` give modules of a name their own rank and alpha; all four are
    PEFT's, as it has them.
    """

    later: ClassVar[frozenset[str]] = frozenset({"modules", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"})

    r: int = Field(default=128, ge=1, le=65_536)
    alpha: int = Field(default=256, ge=1, le=1_000_000)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    modules: str = Field(default="all", min_length=1, max_length=1000)
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, Rank] = Field(default_factory=dict, max_length=1000)
    alpha_pattern: dict[str, Alpha] = Field(default_factory=dict, max_length=1000)

    @field_validator("modules", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        """Return a list of names as one text."""
        return "+".join(map(str, value)) if isinstance(value, list | tuple) else value


class ResampleSection(Section):
    """LISA: `active` layers of the region train at a time, and others after `every` steps; none: all train.

    `order` says which: sampled at random, or evenly spread ones that move on by one layer each time. `state` says
    whether the optimizer's state of a closed layer is kept until the layer is opened again, or dropped.
    """

    later: ClassVar[frozenset[str]] = frozenset({"order"})

    active: int | None = Field(default=None, ge=1, le=10_000)
    every: int = Field(default=20, ge=1, le=MOST)
    state: Literal["keep", "drop"] = "keep"
    order: Literal["random", "moving"] = "random"

    @model_validator(mode="after")
    def _check(self) -> ResampleSection:
        if self.active is None and (self.every, self.state, self.order) != (20, "keep", "random"):
            raise ValueError(
                "every, state and order have no effect without active, the number of layers open at a time"
            )
        return self


class TrainSection(Section):
    """Visual instruction tuning of the region and the projector; defaults are the paper's.

    `lr` is that of the region's layers: a number, or `auto`, which follows from the method, the share of layers that
    train and the rank of adapters (docs/learning-rate.md).
    `projector` trains in full, by adapters, or not at all; older configs say so by `train_projector`. So do the layers
    of the vision encoder that the SPEC `vision_layers` names by `vision`, at the learning rate `vision_lr` (none: 2e-6
    in full, 2e-5 by adapters).
    `resample` trains a few layers of the region at a time (LISA). `gradient_checkpointing` recomputes every layer's
    activations in the backward pass (activation checkpointing). `packing` puts several samples into one row.
    `image_tokens` says which layers compute image tokens: all; those of the region only, in training and from then on
    (visual token skipping); or only while training. With `region` the layers of the SPEC `image_also` compute image
    tokens too, and unless `image_shift` is false image tokens take a constant step in each layer that they skip; with
    `image_whole_every` all layers compute image tokens in every so many-th step of training (0: in none). Such a rule
    is refused if by it the answers' loss of the start model rises by more than `image_check`, in nats a token (null:
    not measured).
    `frozen` is the number format of the decoder layers outside the region while training. `image_tokens`, `frozen` and
    an `optimizer` with moments in 8 bits trade exactness for speed or memory (docs/fast-modes.md).
    With `data.validate` held-out samples are measured (answer loss, and answers that match exactly) every
    `validate_every` steps (none: about ten times in the training) and at the end. `keep` says whether the last step's
    weights are kept or those of the best measurement of `metric_for_best_model`; `early_stopping_patience` ends
    training after as many measurements in a row that were not better than the best one by more than
    `early_stopping_threshold`.
    """

    later: ClassVar[frozenset[str]] = frozenset(
        {
            "vision",
            "vision_lr",
            "vision_layers",
            "image_whole_every",
            "image_check",
            "validate_every",
            "keep",
            "metric_for_best_model",
            "early_stopping_patience",
            "early_stopping_threshold",
        }
    )

    method: Literal["lora", "qlora", "full"] = "lora"
    lora: LoraSection = LoraSection()
    resample: ResampleSection = ResampleSection()
    projector: Literal["frozen", "full", "lora"] = "full"
    train_projector: bool | None = Field(default=None, exclude=True, strict=True)
    lr: Rate = 2e-4
    projector_lr: float = Field(default=2e-5, gt=0, le=FLOAT32)
    vision: Literal["frozen", "lora", "full"] = "frozen"
    vision_lr: float | None = Field(default=None, gt=0, le=FLOAT32)
    vision_layers: LayerSpec = "all"
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    batch_size: int = Field(default=128, ge=1, le=1_000_000)
    epochs: float = Field(default=1.0, gt=0, le=100_000)
    max_steps: int | None = Field(default=None, ge=1, le=MOST)
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0, le=1000)
    max_grad_norm: float = Field(default=1.0, gt=0, le=FLOAT32)
    max_length: int = Field(default=2048, ge=16, le=10_000_000)
    gradient_checkpointing: bool = False
    packing: bool = False
    image_tokens: Literal["all", "region", "region while training"] = "all"
    image_also: LayerSpec = "none"
    image_shift: bool = True
    image_whole_every: int = Field(default=0, ge=0, le=MOST)
    image_check: float | None = Field(default=0.3, ge=0, le=1000)
    frozen: Literal["exact", "fp8", "int8"] = "exact"
    save_steps: int = Field(default=100, ge=1, le=MOST)
    validate_every: int | None = Field(default=None, ge=1, le=MOST)
    keep: Literal["last", "best"] = "last"
    metric_for_best_model: Metric = "loss"
    early_stopping_patience: int | None = Field(default=None, ge=1, le=MOST)
    early_stopping_threshold: float = Field(default=0.0, ge=0, le=FLOAT32)

    _lr = field_validator("lr", mode="before")(number_or_auto)

    @property
    def rate(self) -> float:
        """The learning rate of the region's layers, of settings in which it is a number by now."""
        assert self.lr != AUTO
        return self.lr

    def settled(self, layers: int, num_layers: int) -> TrainSection:
        """Return the settings with a number for `lr`, where `layers` of a model's `num_layers` train.

        Layers that take turns count as many as are open at a time. Where none trains, `lr` is the projector's.
        """
        if self.lr != AUTO:
            return self
        opened = min(layers, self.resample.active or layers)
        found = auto_rate(self.method, opened / num_layers, self.lora.r) if opened else self.projector_lr
        return self.model_copy(update={"lr": found})

    @property
    def on_validation(self) -> dict[str, bool]:
        """Whether what follows from the validation loss is asked for, by setting."""
        return {
            "keep": self.keep == "best",
            "early_stopping_patience": self.early_stopping_patience is not None,
        }

    @model_validator(mode="before")
    @classmethod
    def _of_train_projector(cls, values: Any) -> Any:
        """Return the values with `projector` as `train_projector` says it, which older configs have."""
        if not isinstance(values, dict) or not isinstance(values.get("train_projector"), bool):
            return values
        wanted = "full" if values["train_projector"] else "frozen"
        if values.get("projector", wanted) != wanted:
            raise ValueError(
                f"train_projector means projector {wanted!r}, and projector is {values['projector']!r}:"
                " leave out train_projector, whose place projector has taken"
            )
        return {**values, "projector": wanted}

    @property
    def before_decoder(self) -> bool:
        """Whether something trains that comes before the first decoder layer."""
        return (self.projector, self.vision) != ("frozen", "frozen")

    def noted(self) -> dict[str, Any]:
        """Return the settings as keys of stages hold them, `projector` in the words that it had before."""
        found = super().noted()
        before = {"train_projector": self.projector != "frozen"}
        more = {"projector": self.projector} if self.projector == "lora" else {}
        return {name: value for name, value in found.items() if name != "projector"} | before | more

    @model_validator(mode="after")
    def _check_modes(self) -> TrainSection:
        if self.image_also != "none" and self.image_tokens == "all":
            raise ValueError("image_also has no effect with image_tokens 'all', which computes them in every layer")
        if self.image_whole_every and self.image_tokens == "all":
            raise ValueError("image_whole_every has no effect with image_tokens 'all': every step is whole")
        if self.image_whole_every == 1:
            raise ValueError(
                "image_whole_every 1 lets all layers compute image tokens in every step, which image_tokens 'all' says:"
                " use that, 0 for no such step, or 2 and more"
            )
        for name, part in (("projector", self.projector), ("vision", self.vision)):
            if self.method == "full" and part == "lora":
                raise ValueError(
                    f"{name} lora goes with method lora or qlora: full weights and adapters are no one checkpoint"
                )
        if self.method == "qlora" and self.frozen != "exact":
            raise ValueError("frozen has no effect on method qlora, whose frozen layers are in 4 bits")
        return self
