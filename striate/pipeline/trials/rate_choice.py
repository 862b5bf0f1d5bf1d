"""Learning rates to try, how many steps a budget allows for each, and which one was best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from striate.artifacts import RateTrial
from striate.errors import ConfigError

# Fewer steps say little: warm-up alone is about one of them.
LEAST_STEPS = 10
COUNT, FACTOR = 5, 2.0


def rates_around(lr: float, count: int = COUNT, factor: float = FACTOR) -> tuple[float, ...]:
    """Return `count` rates, `factor` apart, with `lr` in the middle, to four digits."""
    return tuple(float(f"{lr * factor ** (place - count // 2):.4g}") for place in range(count))


@dataclass(frozen=True)
class Pace:
    """What a short training took, in seconds: each step, and all else of it (loading, measuring)."""

    step: float
    besides: float

    def steps_within(self, seconds: float, trials: int, whole: int) -> int:
        """Return how many steps each of the `trials` gets in `seconds`; not more than the `whole` training has.

        Raises:
            ConfigError: too few to tell anything.
        """
        least = min(LEAST_STEPS, whole)
        steps = int((seconds / trials - self.besides) / self.step)
        if steps < least:
            needed = trials * (self.besides + least * self.step) / 60
            raise ConfigError(
                f"{max(0.0, seconds) / 60:.3g} minutes are left for {trials} rates, of which each takes"
                f" {self.besides:.3g} s and {self.step:.3g} s a step",
                f"{least} steps a rate or more: {needed:.1f} minutes or more",
                "give more --minutes or fewer --rates, or lower train.batch_size",
            )
        return min(steps, whole)


def best_rate(trials: Sequence[RateTrial], metric: str) -> tuple[float | None, bool]:
    """Return the best rate by `metric`, and whether it is the lowest or the highest of those that were tried.

    Of rates with as many exact matches the one with the least loss is best. A diverged trial is worse than all others:
    a rate beside it is at no open end.
    """
    ordered = sorted(trials, key=lambda trial: trial.lr)
    sane = [trial for trial in ordered if trial.measured]
    if not sane:
        return None, False
    loss = metric.replace("exact_match", "loss")
    best = min(sane, key=lambda trial: (-trial.measured[metric] if metric != loss else 0.0, trial.measured[loss]))
    return best.lr, best is ordered[0] or best is ordered[-1]
