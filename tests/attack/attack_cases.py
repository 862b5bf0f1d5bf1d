"""All attack cases, and an even sample of them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import attack_configs
import attack_data
import attack_files
import attack_models
import attack_pictures
import attack_runs
import attack_shown
from attack_engine import Case

MODULES = (
    attack_configs,
    attack_files,
    attack_runs,
    attack_data,
    attack_pictures,
    attack_models,
    attack_shown,
)


def all_cases() -> list[Case]:
    """Return every case, kind by kind."""
    cases = [case for module in MODULES for case in module.cases()]
    kinds = list(dict.fromkeys(case.kind for case in cases))
    return sorted(cases, key=lambda case: kinds.index(case.kind))


def sampled(cases: Sequence[Case], most: int, seed: int) -> list[Case]:
    """Return at most `most` cases of each kind, drawn with `seed` and in order; all with `most` 0."""
    kinds: dict[str, list[int]] = {}
    for index, case in enumerate(cases):
        kinds.setdefault(case.kind, []).append(index)
    drawn = [
        random.Random(f"{seed} {kind}").sample(places, most) if 0 < most < len(places) else places
        for kind, places in kinds.items()
    ]
    return [cases[index] for index in sorted(index for places in drawn for index in places)]
