"""The trials of `pruning_study.py`: which layers go, what stands in for them, and how what is left is healed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

# Of `refit_rankings.py`.
REFITTING = ("answer-loss+refit", "refit-error")
GREEDY = ("answer-loss", "answer-accuracy", *REFITTING)
# Greedy ones that are also made with more weight on text.
WEIGHED = ("answer-loss", "answer-loss+refit")
ONE_SHOT = ("modality-block-influence", "angular-distance", "knock-out")
BY_PLACE = ("spaced", "top")
RANKINGS = (*GREEDY[:2], *ONE_SHOT, *BY_PLACE)
# Shares of 30 layers: 10, 23, 33 and 50%; shares of 860 steps of tuning: 1, 5 and 25%.
REMOVED = (3, 7, 10, 15)
STEPS = (9, 43, 215)
# Layers that go where questions are asked of one count alone.
CHOSEN = 7


@dataclass(frozen=True)
class Trial:
    """One pruned model.

    Attributes:
        seed: of the tuned model, and of healing.
        ranking: what says which layers go.
        weight: of text in a greedy ranking.
        remove: how many.
        compensate: closed form for the kept layers before the cuts.
        steps: of healing; 0 leaves it out.
        region: which layers heal.
        method: of healing; None takes that of the tuning.
        lr: of healing.
        ce: weight of the cross entropy.
        kl: weight of the divergence from the tuned model.
        hidden: weight of the distance from its last hidden states.
        text: share of plain text among the samples.
        stories: whether that text is also what the start model wrote itself.
        before: whether the start model is pruned, and tuned afterwards.
    """

    seed: int
    ranking: str = "answer-loss"
    weight: float = 0.5
    remove: int = 7
    compensate: str = "refit"
    steps: int = 0
    region: str = "region"
    method: str | None = None
    lr: float = 4e-4
    ce: float = 1.0
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


def trials(
    seeds: Sequence[int], groups: Sequence[str], fields: Mapping[str, Any], by_steps: Mapping[int, Mapping[str, Any]]
) -> list[Trial]:
    """Return all trials of the named groups, in order, each once; the first seed answers most questions alone.

    `fields` are those that the groups do not vary, `by_steps` those of trials that heal for as many steps or fewer.
    """
    common = Common(Trial(seeds[0], **fields), {steps: dict(by_steps[steps]) for steps in sorted(by_steps)})
    found = [trial for group in groups for trial in GROUPS[group](seeds, common)]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Common:
    """What trials have in common."""

    trial: Trial
    by_steps: Mapping[int, Mapping[str, Any]]

    def healed(self, steps: int, **changes: Any) -> Trial:
        """Return a trial of so many steps of healing, in the way that is best for it as far as one is known."""
        ways = [way for known, way in self.by_steps.items() if known >= steps]
        return replace(self.trial, steps=steps, **{**(ways[0] if ways else {}), **changes})


def _ideas(seeds: Sequence[int], common: Common) -> Iterator[Trial]:
    """Yield ways of cutting, of the first seed and without healing."""
    for remove in (CHOSEN, 10):
        for ranking in ("answer-loss", *REFITTING, "angular-distance", "knock-out"):
            for weight in (0.5, 0.8) if ranking in WEIGHED else (0.5,):
                yield replace(common.trial, ranking=ranking, weight=weight, remove=remove)
    for remove in (CHOSEN, 10):
        for ranking in ("angular-distance", "answer-loss+refit", "answer-loss"):
            yield replace(common.trial, ranking=ranking, remove=remove, compensate="refit-deep")


def _cuts(seeds: Sequence[int], common: Common) -> Iterator[Trial]:
    """Yield what no healing follows, of every seed."""
    for remove in REMOVED:
        for compensate in dict.fromkeys((common.trial.compensate, "refit", "none")):
            yield from (replace(common.trial, seed=seed, remove=remove, compensate=compensate) for seed in seeds)
        yield replace(common.trial, remove=remove, compensate="scale")


def _rankings(seeds: Sequence[int], common: Common) -> Iterator[Trial]:
    """Yield the same of the other rankings, and what they reach healed."""
    for ranking in RANKINGS:
        one = replace(common.trial, ranking=ranking, weight=0.5)
        for remove in REMOVED:
            yield from (replace(one, remove=remove, compensate=how) for how in (one.compensate, "none"))
        yield common.healed(215, ranking=ranking, weight=0.5)


def _finalists(seeds: Sequence[int], common: Common) -> Iterator[Trial]:
    """Yield what rankings that suit a refit reach when they are healed."""
    for ranking in ("angular-distance", "knock-out", "answer-loss"):
        for remove in (CHOSEN, 10):
            for steps in (215, 43):
                yield common.healed(steps, ranking=ranking, weight=0.5, remove=remove)


def _ways(seeds: Sequence[int], common: Common) -> Iterator[Trial]:
    """Yield layers and rates of healing."""
    ways: dict[int, dict[str, tuple[float, ...]]] = {
        215: {"region": (2e-4, 4e-4), "beside": (2e-4,), "all": (5e-5, 1e-4, 2e-4)},
        43: {"region": (1e-4, 2e-4, 4e-4), "all": (2.5e-5, 5e-5, 1e-4, 2e-4)},
    }
    for steps, regions in ways.items():
        for region, rates in regions.items():
            yield from (replace(common.trial, steps=steps, region=region, lr=lr) for lr in rates)
        yield from (replace(common.trial, steps=steps, region="all", method="lora", lr=lr) for lr in (2e-4, 8e-4))


def _parts(seeds: Sequence[int], common: Common) -> Iterator[Trial]:
    """Yield what each part of healing gives, by leaving it out or weighing it otherwise."""
    changes: tuple[dict[str, Any], ...] = (
        {"kl": 0.0},
        {"ce": 0.0},
        {"kl": 4.0},
        {"text": 0.0},
        {"text": 0.25},
        {"text": 0.5},
        {"text": 0.75},
        {"kl": 0.0, "text": 0.0},
        {"stories": False},
        {"hidden": 0.5},
        {"compensate": "none"},
        {"compensate": "scale"},
    )
    for steps in (215, 43):
        for change in changes:
            yield common.healed(steps, **change)


def _healed(seeds: Sequence[int], common: Common) -> Iterator[Trial]:
    """Yield how much healing gives back, of every seed."""
    for remove in (CHOSEN, 10, 3, 15):
        for steps in STEPS[:0:-1] if remove in (3, 15) else STEPS[::-1]:
            yield from (common.healed(steps, seed=seed, remove=remove) for seed in seeds)


def _repeats(seeds: Sequence[int], common: Common) -> Iterator[Trial]:
    """Yield the rankings that keep most when they are healed, of every seed."""
    arms: tuple[dict[str, Any], ...] = (
        {"ranking": "angular-distance", "text": 0.0},
        {"ranking": "answer-loss", "text": 0.0},
        {"ranking": "answer-loss", "text": 0.25},
    )
    for remove, steps in ((10, 215), (CHOSEN, 43), (CHOSEN, 215)):
        for arm in arms:
            yield from (common.healed(steps, seed=seed, remove=remove, **arm) for seed in seeds)


def _before(seeds: Sequence[int], common: Common) -> Iterator[Trial]:
    """Yield models that are pruned first and tuned afterwards."""
    yield from (Trial(seed, before=True) for seed in seeds)
    yield Trial(seeds[0], before=True, region="all")


GROUPS = {
    "ideas": _ideas,
    "cuts": _cuts,
    "ways": _ways,
    "finalists": _finalists,
    "before": _before,
    "parts": _parts,
    "healed": _healed,
    "repeats": _repeats,
    "rankings": _rankings,
}
