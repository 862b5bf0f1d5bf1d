"""The trials of `pruning_study.py`: which layers go, what stands in for them, and how what is left is healed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

GREEDY = ("answer-loss", "answer-accuracy")
ONE_SHOT = ("modality-block-influence", "angular-distance", "knock-out")
BY_PLACE = ("spaced", "top")
RANKINGS = (*GREEDY, *ONE_SHOT, *BY_PLACE)
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
        method: of healing; None takes that of the tuning.
        lr: of healing.
        kl: weight of the divergence from the tuned model.
        hidden: weight of the distance from its last hidden states.
        text: share of plain text among the samples.
        stories: whether that text is also what the start model wrote itself.
        before: whether the start model is pruned, and tuned afterwards.
    """

    seed: int
    ranking: str = "answer-loss"
    remove: int = 7
    compensate: str = "refit"
    steps: int = 0
    region: str = "region"
    method: str | None = None
    lr: float = 4e-4
    kl: float = 1.0
    hidden: float = 0.0
    text: float = 0.5
    stories: bool = True
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


def trials(seeds: Sequence[int], only: Sequence[str], base: Sequence[tuple[str, Any]] = ()) -> list[Trial]:
    """Return all trials of the named groups, in order, each once; the first seed answers most questions alone.

    `base` has fields of healing that the groups do not vary.
    """
    common = Trial(seeds[0], **dict(base))
    found = [trial for group in only or GROUPS for trial in GROUPS[group](seeds, common)]
    return list(dict.fromkeys(found))


def _cuts(seeds: Sequence[int], common: Trial) -> Iterator[Trial]:
    """Yield what no healing follows, of every seed."""
    for remove in REMOVED:
        for compensate in ("refit", "none"):
            yield from (Trial(seed, remove=remove, compensate=compensate) for seed in seeds)
        yield Trial(seeds[0], remove=remove, compensate="scale")


def _rankings(seeds: Sequence[int], common: Trial) -> Iterator[Trial]:
    """Yield the same of the other rankings, and what they reach healed."""
    for ranking in RANKINGS[1:]:
        for remove in REMOVED:
            yield from (Trial(seeds[0], ranking, remove, compensate) for compensate in ("refit", "none"))
        yield replace(common, ranking=ranking, steps=215)


def _ways(seeds: Sequence[int], common: Trial) -> Iterator[Trial]:
    """Yield layers and rates of healing, then other losses, mixtures and compensations."""
    rates = {"region": (2e-4, 4e-4, 8e-4, 1.6e-3), "beside": (2e-4, 4e-4, 8e-4), "all": (1e-4, 2e-4, 4e-4, 8e-4)}
    for steps in (215, 43):
        for region, some in rates.items():
            yield from (replace(common, steps=steps, region=region, lr=lr) for lr in some)


def _parts(seeds: Sequence[int], common: Trial) -> Iterator[Trial]:
    """Yield what each part of healing gives, by leaving it out or weighing it otherwise."""
    changes: tuple[dict[str, Any], ...] = (
        {"kl": 0.0},
        {"kl": 4.0},
        {"text": 0.0},
        {"text": 0.25},
        {"text": 0.75},
        {"kl": 0.0, "text": 0.0},
        {"stories": False},
        {"hidden": 0.5},
        {"compensate": "none"},
        {"compensate": "scale"},
        {"method": "lora", "lr": 4 * common.lr},
    )
    for steps in (215, 43):
        for change in changes:
            yield replace(common, steps=steps, **change)


def _healed(seeds: Sequence[int], common: Trial) -> Iterator[Trial]:
    """Yield how much healing gives back, of every seed."""
    for remove in (7, 10, 3, 15):
        for steps in reversed(STEPS):
            yield from (replace(common, seed=seed, remove=remove, steps=steps) for seed in seeds)


def _before(seeds: Sequence[int], common: Trial) -> Iterator[Trial]:
    """Yield models that are pruned first and tuned afterwards."""
    yield Trial(seeds[0], before=True)
    yield Trial(seeds[0], before=True, region="all")


GROUPS = {
    "cuts": _cuts,
    "ways": _ways,
    "before": _before,
    "parts": _parts,
    "healed": _healed,
    "rankings": _rankings,
}
