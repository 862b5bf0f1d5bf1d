"""What a scorer needs in order to run: the runner that `analyze` gives it to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from striate.registry import Strategy

Source = Literal[
    "hidden states", "attention", "altered layers", "gradients", "weights", "weight change", "picture pairs"
]
"""What is looked at. `hidden states` and `attention` share one plain forward pass; the others have own runners."""


@dataclass(frozen=True)
class LayerScorer(Strategy[Callable[..., Any]]):
    """One registered scorer.

    Attributes:
        source: what it looks at; scorers of one source share their work.
        limits: what it can't tell, in one sentence, as docs and report show it.
    """

    source: Source = "hidden states"
    limits: str = ""
