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


class PruneSection(Section):
    """How many layers outside the region are removed, and the scorer that ranks them."""

    remove: int = Field(default=0, ge=0, le=10_000)
    scorer: str = "modality-block-influence"
