"""Settings of analyze, select and prune: scorers, the region, and how many layers are removed."""

from typing import Literal

from pydantic import Field

from striate.config.section import MOST, LayerSpec, Section


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


class PruneSection(Section):
    """How many layers outside the region are removed, and the scorer that ranks them.

    `scorer` is one of `analyze.scorers`, whose scores rank all layers at once, or `answer-loss` or `answer-accuracy`,
    which score every candidate again after each cut, by the tuned model's answers on `samples` of the calibration set.
    Of these, samples without a picture count `text_weight`, those with one the rest. `top` and `spaced` go by place
    alone: the last layers, or evenly spaced ones.
    """

    remove: int = Field(default=0, ge=0, le=10_000)
    scorer: str = "modality-block-influence"
    samples: int = Field(default=128, ge=1, le=MOST)
    text_weight: float = Field(default=0.5, ge=0, le=1)

    @property
    def greedy(self) -> bool:
        """Whether candidates are scored again after each cut."""
        return self.scorer in GREEDY

    @property
    def needs_scores(self) -> bool:
        """Whether one of `analyze.scorers` ranks the layers that are removed."""
        return bool(self.remove) and self.scorer not in GREEDY + BY_PLACE
