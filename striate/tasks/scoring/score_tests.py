"""Score statistics of a paired difference and of a paired ratio of shares, from which intervals are inverted."""

import math
from collections.abc import Callable
from dataclasses import dataclass

STEPS = 60
NEAR = 1e-12


@dataclass(frozen=True)
class Shares:
    """What of `size` independent items both models have right, and only one of them."""

    size: float
    both: float
    gained: float
    lost: float


def difference_statistic(shares: Shares, difference: float) -> float:
    """Return by how many standard errors the gained less the lost share exceeds `difference`.

    The error is that of the likeliest shares under `difference` (Tango 1998, Statistics in Medicine 17, 891-908).
    """
    n, gained, lost = shares.size, shares.size * shares.gained, shares.size * shares.lost
    lost_then = _root(
        2 * n, (2 * n - gained + lost) * difference - gained - lost, -lost * difference * (1 - difference)
    )
    variance = n * (2 * lost_then + difference - difference**2)
    return _standardised(gained - lost - n * difference, variance)


def ratio_statistic(shares: Shares, ratio: float) -> float:
    """Return by how many standard errors the other model's share exceeds `ratio` times the baseline's.

    The error is that of the likeliest shares under `ratio` (Tang, Tang and Chan 2003, Statistics in Medicine 22,
    1217-1233, after Nam and Blackwelder 2002).
    """
    n = shares.size
    both, gained, lost = (n * share for share in (shares.both, shares.gained, shares.lost))
    either = both + gained + lost
    lost_then = _root(
        n * (1 + ratio), (both + lost) * ratio**2 - both - gained - 2 * lost, lost * (1 - ratio) * either / n
    )
    variance = n * (1 + ratio) * lost_then + either * (ratio - 1)
    return _standardised(both + gained - (both + lost) * ratio, variance)


def crossing(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where `function`, which falls from `low` to `high`, passes nought; `high` where it does not."""
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return high


def _root(square: float, linear: float, constant: float) -> float:
    """Return the larger root of a quadratic."""
    return (math.sqrt(max(0.0, linear**2 - 4 * square * constant)) - linear) / (2 * square)


def _standardised(excess: float, variance: float) -> float:
    if variance > NEAR:
        return excess / math.sqrt(variance)
    return 0.0 if abs(excess) < NEAR else math.copysign(math.inf, excess)
