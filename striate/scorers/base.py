"""The base class of scorers: metadata that says what a scorer reads and which runner serves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from striate.errors import ConfigError
from striate.registry import Strategy

Source = Literal[
    "hidden states", "attention", "altered layers", "gradients", "weights", "weight change", "picture pairs"
]
"""What is looked at. `hidden states` and `attention` share one plain forward pass; the others have own runners."""


@dataclass(frozen=True)
class LayerScorer(Strategy[Callable[..., Any]]):
    """One registered scorer. Of hidden states, its function takes a `LayerView` and returns a `Tally` for each part.

    Attributes:
        source: what it looks at; scorers of one source share their work.
        reads: of hidden states, the `tokens` themselves or the `grams` between them.
        limits: what it can't tell, in one sentence, as docs and report show it.
        shown: parts that are reported beside the score and do not count in it; they may have no tokens.
        spans: whether it also scores spans of several layers.
        needs_pictures: whether it has no score without image tokens.
        bounds: the least and the most that a sample may score, where samples often score alike.
    """

    source: Source = "hidden states"
    reads: Literal["tokens", "grams"] = "tokens"
    limits: str = ""
    shown: tuple[str, ...] = ()
    spans: bool = False
    needs_pictures: bool = False
    bounds: tuple[float, float] | None = None

    @property
    def needs_base(self) -> bool:
        """Whether it compares with the untuned checkpoint."""
        return self.source == "weight change"


def check_base_named(scorers: Sequence[LayerScorer], base: Path | str | None) -> None:
    """Check that there is an untuned checkpoint, `base`, where one of the scorers compares with it.

    Raises:
        ConfigError: there is none.
    """
    needing = [scorer.name for scorer in scorers if scorer.needs_base]
    if needing and base is None:
        raise ConfigError(
            f"{', '.join(needing)} compares with the untuned checkpoint, and none is named",
            "the folder of the checkpoint from which the model was tuned",
            "set analyze.base to it",
        )
