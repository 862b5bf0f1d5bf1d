"""The learning rate that follows from what trains: a number for `auto`, by the rule of docs/learning-rate.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from striate.printable import shown

AUTO: Final = "auto"
# Weights in float32 can't take a step beyond this.
FLOAT32 = 1e38
Rate = Annotated[float, Field(gt=0, le=FLOAT32)] | Literal["auto"]


@dataclass(frozen=True)
class _Rule:
    """What suits all layers at rank 128, and the powers by which it falls with the share of layers and the rank."""

    base: float
    share: float
    rank: float


# full: six rates of each region of the built-in LVLM. lora: the paper's 2e-4 for a quarter, half of that for all
# layers, and twice as much for a fourth of the rank, as measured (docs/learning-rate.md).
_RULES = {"full": _Rule(4e-4, 1.0, 0.0), "lora": _Rule(1e-4, 0.5, 0.5)}
_RANK = 128
# Of tuning's rate. Whole weights forget more at it than they mend (docs/pruning.md); of adapters, which start at
# nothing, no lower rate was better.
_HEALING = {"full": 0.25, "lora": 1.0}


def auto_rate(method: str, share: float, rank: int = _RANK) -> float:
    """Return the learning rate of layers that train, to two digits.

    Args:
        method: `full`, `lora` or `qlora`.
        share: the layers that train at a time, of all decoder layers; over 0 to 1.
        rank: of the adapters; without effect on full weights.
    """
    rule = _RULES["full" if method == "full" else "lora"]
    return _two_digits(rule.base / share**rule.share / (rank / _RANK) ** rule.rank)


def healing_rate(method: Literal["lora", "full"], rate: float) -> float:
    """Return the learning rate that heals, by `method`, what was tuned at `rate`."""
    return _two_digits(_HEALING[method] * rate)


def number_or_auto(value: Any) -> float | Literal["auto"]:
    """Return the learning rate that a setting's value means.

    Raises:
        ValueError: it is neither `auto` nor a number that weights in float32 can take a step of.
    """
    if value == AUTO:
        return AUTO
    try:
        rate = 0.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        rate = 0.0
    if not 0 < rate <= FLOAT32:
        raise ValueError(f"{shown(value)} is neither a number over 0 to {FLOAT32:g} nor auto")
    return rate


def _two_digits(rate: float) -> float:
    return float(f"{rate:.2g}")
