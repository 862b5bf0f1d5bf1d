"""Which runs of a sweep go on: rungs of short trainings, and the best of those that differ in one setting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from striate.config.sweep_settings import ChooseSection
from striate.pipeline.sweeps.plan import Planned

Measured = Callable[[Planned], float | None]
"""What a run measured on held-out samples, by the metric that chooses; None of one that failed."""


def classes_of(runs: Sequence[Planned], over: Sequence[str]) -> list[list[Planned]]:
    """Return the runs that differ in the settings `over` alone, together, in their order."""
    found: list[list[Planned]] = []
    for run in runs:
        same = next((one for one in found if run.alike(one[0], over)), None)
        found.append([run]) if same is None else same.append(run)
    return found


def ranked(runs: Sequence[Planned], choose: ChooseSection, measured: Measured) -> list[Planned]:
    """Return the runs that measured something, the best first; of equal ones the earlier."""
    # Of answers that match there should be many, of loss little.
    sign = -1 if choose.by.endswith("exact_match") else 1
    values = {run.name: measured(run) for run in runs}
    known = [run for run in runs if (value := values[run.name]) is not None and math.isfinite(value)]
    return sorted(known, key=lambda run: sign * (values[run.name] or 0.0))


def survivors(runs: Sequence[Planned], choose: ChooseSection, measured: Measured) -> list[Planned]:
    """Return the better half, rounded up, of every class of runs, in their order."""
    kept: list[Planned] = []
    for same in classes_of(runs, choose.over):
        best = ranked(same, choose, measured)
        names = {run.name for run in best[: math.ceil(len(same) / 2)]}
        kept += [run for run in same if run.name in names]
    return kept


def at_an_end(best: Sequence[Planned], over: Sequence[str], runs: Sequence[Planned]) -> list[str]:
    """Return in words where the best of numbers is the lowest or the highest of those `runs` that differ in `over`."""
    return [
        f"{run.name}: {name} {run.settings[name]} is the {'lowest' if end == min(values) else 'highest'} that was tried"
        for name in over
        for run in best
        if len(values := _numbers([one.settings.get(name) for one in runs if one.alike(run, over)])) > 1
        if (end := _number(run.settings.get(name))) in (min(values), max(values))
    ]


def _numbers(values: Sequence[Any]) -> list[float]:
    """Return the values as numbers, each once; nothing where one is none, such as `auto`."""
    found = [_number(value) for value in dict.fromkeys(map(str, values))]
    return [] if None in found else [number for number in found if number is not None]


def _number(value: Any) -> float | None:
    # YAML 1.1 reads 1e-4, without a point, as text.
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
