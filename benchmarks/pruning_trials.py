"""The trials of `pruning_study.py`: which layers go, what stands in for them, and how what is left is healed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

GREEDY = ("answer-loss", "answer-accuracy")
ONE_SHOT = ("modality-block-influence", "angular-distance", "knock-out")
BY_PLACE = ("spaced", "top")
RANKINGS = (*GREEDY, *ONE_SHOT, *BY_PLACE)
COMPENSATIONS = ("none", "refit", "scale")
# Shares of 30 layers: 10, 23, 33 and 50%; shares of 860 steps of tuning: 1, 5 and 25%.
REMOVED = (3, 7, 10, 15)
STEPS = (9, 43, 215)


@dataclass(frozen=True)
class Trial:
    """One pruned model.

    Attributes:
        seed: of the tuned model, and of healing.
        ranking: what says which layers go.
        remove: how many.
        compensate: closed form for the kept layers before the cuts.
        steps: of healing; 0 leaves it out.
        region: which layers heal.
        kl: weight of the divergence from the tuned model.
        hidden: weight of the distance from its last hidden states.
        text: share of plain text among the samples.
        lr: of healing; None takes that of the tuning.
        before: whether the start model is pruned, and tuned afterwards.
    """

    seed: int
    ranking: str = "answer-loss"
    remove: int = 7
    compensate: str = "none"
    steps: int = 0
    region: str = "region"
    kl: float = 1.0
    hidden: float = 0.0
    text: float = 0.25
    lr: float | None = None
    before: bool = False

    @property
    def name(self) -> str:
        """What tells it from the others: the fields that are not as by default."""
        default = asdict(Trial(seed=-1))
        return ",".join(f"{key}={value}" for key, value in asdict(self).items() if value != default[key])

    @property
    def arm(self) -> str:
        """The same without the seed."""
        return self.name.partition(",")[2] or "default"


def trials(seeds: Sequence[int], only: Sequence[str]) -> list[Trial]:
    """Return all trials of the named groups, in order, each once; the first seed answers most questions alone."""
    found = [trial for group in only or GROUPS for trial in GROUPS[group](seeds)]
    return list(dict.fromkeys(found))


def _cuts(seeds: Sequence[int]) -> Iterator[Trial]:
    """Yield what no healing follows: each ranking and compensation, and the best for every seed."""
    for remove in REMOVED:
        for compensate in COMPENSATIONS[:2]:
            yield from (Trial(seed, remove=remove, compensate=compensate) for seed in seeds)
        for ranking in RANKINGS:
            yield from (Trial(seeds[0], ranking, remove, compensate) for compensate in COMPENSATIONS)


def _healed(seeds: Sequence[int]) -> Iterator[Trial]:
    """Yield how much healing gives back, with every seed."""
    for remove in (7, 10, 3, 15):
        for steps in reversed(STEPS):
            yield from (Trial(seed, remove=remove, steps=steps) for seed in seeds)


def _refitted(seeds: Sequence[int]) -> Iterator[Trial]:
    """Yield the same where the layers before the cuts are refitted first."""
    yield from (replace(trial, compensate="refit") for trial in _healed(seeds) if trial.remove in (7, 10))


def _ways(seeds: Sequence[int]) -> Iterator[Trial]:
    """Yield other layers, losses, mixtures and rates of healing."""
    changes: tuple[dict[str, Any], ...] = (
        {"region": "beside"},
        {"region": "all"},
        {"kl": 0.0},
        {"text": 0.0},
        {"text": 0.5},
        {"kl": 0.0, "text": 0.0},
        {"kl": 4.0},
        {"hidden": 0.5},
        {"lr": 8e-4},
        {"lr": 4e-4},
    )
    for steps in (215, 43):
        for change in changes:
            yield replace(Trial(seeds[0], steps=steps), **change)


def _rankings(seeds: Sequence[int]) -> Iterator[Trial]:
    """Yield what the other rankings reach after healing."""
    yield from (Trial(seeds[0], ranking, steps=215) for ranking in RANKINGS[1:])


def _before(seeds: Sequence[int]) -> Iterator[Trial]:
    """Yield models that are pruned first and tuned afterwards."""
    yield Trial(seeds[0], before=True)
    yield Trial(seeds[0], before=True, region="all")


GROUPS = {
    "cuts": _cuts,
    "healed": _healed,
    "ways": _ways,
    "refitted": _refitted,
    "rankings": _rankings,
    "before": _before,
}
