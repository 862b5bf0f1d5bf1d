"""Settings of analyze, select and prune: scorers, the region, and how many layers are removed."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from striate.config.section import MOST, LayerSpec, Section
from striate.printable import shown


class AnalyzeSection(Section):
    """Which scorers run, on how many calibration samples, over all of them together or by task as well.

    `base` is the folder of the untuned checkpoint that `parameter-change` compares with; `pairs` is how many pairs of
    pictures per attribute `token-swap` draws.
    """

    scorers: tuple[str, ...] = Field(default=("block-influence", "modality-block-influence"), min_length=1)
    samples: int = Field(default=64, ge=1, le=MOST)
    by: Literal["all", "task"] = "all"
    base: str | None = None
    pairs: int = Field(default=32, ge=2, le=100_000)


class SelectSection(Section):
    """The region SPEC."""

    region: LayerSpec = "uniform:25%"


GREEDY = ("answer-loss", "answer-accuracy")
BY_PLACE = ("top", "spaced")
MOST_LAYERS = 10_000
Percentage = Annotated[str, "a percentage such as `25%`"]
_PERCENTAGE = re.compile(r"(100|[0-9]{1,2}(\.[0-9]{1,9})?) *%")


class PruneSection(Section):
    """How many layers outside the region are removed, and the scorer that ranks them.

    `remove` is their number, or a percentage of the model's layers: of 30, `25%` is 8 (`floor(0.25 * 30 + 0.5)`), and
    every percentage over 0 is one layer or more.
    `scorer` is one of `analyze.scorers`, whose scores rank all layers at once, or `answer-loss` or `answer-accuracy`,
    which score every candidate again after each cut, by the tuned model's answers on `samples` of the calibration set.
    Of these, samples without a picture count `text_weight`, those with one the rest. `top` and `spaced` go by place
    alone: the last layers, or evenly spaced ones.
    `compensate` changes kept layers in closed form, on the same `samples`, to stand in for removed ones: `refit` of the
    weight before each gap, or `scale` of what is written behind it (docs/pruning.md); `auto` is `refit` where the
    model's layers can be refitted, and says so where they can't.
    `when` says whether layers leave the tuned model, or the start model before it is tuned: then the start model's
    answers or scores rank them, and `checkpoint/` is the tuned smaller model.
    `until` is what the smaller model must keep of the tuned one's scores, such as `visual>=99,text>=98`, healed where
    healing is asked for: as many layers go as that bears, and `remove` is then the most that may go, which is cut to
    those outside the region. It is asked on `until_packs`, best held out from the test; where none are named, on
    `evaluate.packs`.
    """

    remove: Annotated[int, Field(ge=0, le=MOST_LAYERS)] | Percentage = 0
    scorer: str = "answer-loss"
    samples: int = Field(default=128, ge=1, le=MOST)
    text_weight: float = Field(default=0.5, ge=0, le=1)
    compensate: Literal["auto", "none", "refit", "scale"] = "auto"
    when: Literal["after", "before"] = "after"
    until: str | None = None
    until_packs: tuple[str, ...] = ()

    @property
    def first(self) -> bool:
        """Whether layers go before the tuning."""
        return bool(self.remove) and self.when == "before"

    @property
    def greedy(self) -> bool:
        """Whether candidates are scored again after each cut."""
        return self.scorer in GREEDY

    @property
    def reads_samples(self) -> bool:
        """Whether calibration samples say which layers go, or how others stand in for them."""
        return bool(self.remove) and (self.greedy or self.compensate != "none")

    @property
    def needs_scores(self) -> bool:
        """Whether one of `analyze.scorers` ranks the layers that are removed."""
        return bool(self.remove) and self.scorer not in GREEDY + BY_PLACE

    @field_validator("remove", mode="before")
    @classmethod
    def _number_or_percentage(cls, value: Any) -> int | str:
        """Return the number, or the percentage as it was written; no percent is the number 0."""
        text = value.strip() if isinstance(value, str) else ""
        if _PERCENTAGE.fullmatch(text):
            return text if text.strip("0.% ") else 0
        number = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else value
        if isinstance(number, float) and number.is_integer():
            number = int(number)
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= MOST_LAYERS:
            allowed = f"a number of layers from 0 to {MOST_LAYERS:,}, or a percentage of them up to 100%, such as 25%"
            raise ValueError(f"{shown(value)} is not {allowed}")
        return number
