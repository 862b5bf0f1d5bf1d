"""The plan of `pruning_study.py`: which trials are asked for, what each needs, and which way of healing is best."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from pruning_trials import BY_PLACE, ONE_SHOT, STEPS, Trial, trials
from task_queue import Task

BEST = "best-way.json"


def wanted(args: argparse.Namespace) -> list[Trial]:
    """Return the trials of `--groups`, and when they are done those of `--then`, healed as the best of the former."""
    first = trials(args.seeds, args.groups, args.base)
    found = args.out / BEST
    if not (args.then and found.exists()):
        return first
    return list(dict.fromkeys([*first, *trials(args.seeds, args.then, [*json.loads(found.read_text()).items()])]))


def best_way(lines: list[dict[str, Any]], done: list[Trial]) -> dict[str, Any]:
    """Return region and rate of the healed trials that keep most: visual and text weighed alike."""
    # Where the tuned model gets nothing right there is nothing to keep.
    kept = {line["trial"]: sum((line[part]["kept"] or [0.0])[0] for part in ("visual", "text")) for line in lines}
    healed = [trial for trial in done if trial.steps == max(STEPS) and trial.arm in kept]
    best = max(healed, key=lambda trial: kept[trial.arm])
    return {"region": best.region, "lr": best.lr}


def ranked(trial: Trial) -> str:
    """Return the name of the file of a trial's ranking; one-shot scores are the start model's, as in a run."""
    start = trial.before or trial.ranking in ONE_SHOT
    return f"rank,{'start' if start else trial.seed},{trial.ranking}.json"


def tasks(args: argparse.Namespace, wanted: list[Trial]) -> Iterator[Task]:
    """Yield everything to do in order."""
    # The first keeps the vision features that the others read, and compiles what they find compiled.
    first = args.seeds[0]
    for seed in args.seeds:
        yield Task(f"tuned,{seed}", (seed,), () if seed == first else (f"tuned-{first}/train_log.jsonl",))
    yield Task("start")
    for trial in wanted:
        if trial.ranking not in BY_PLACE:
            name = ranked(trial).removesuffix(".json")
            seed = None if name.startswith("rank,start") else trial.seed
            yield Task(name, (seed, trial.ranking), () if seed is None else (f"tuned,{seed}.json",))
    for seed in sorted({trial.seed for trial in wanted if trial.steps}):
        yield Task(f"teacher,{seed}", (seed,), (f"tuned,{seed}.json",))
    for trial in wanted:
        needs = [] if trial.before else [f"tuned,{trial.seed}.json"]
        needs += [f"teacher,{trial.seed}.json"] if trial.steps else []
        needs += [] if trial.ranking in BY_PLACE else [ranked(trial)]
        yield Task(f"trial,{trial.name}", (trial,), tuple(needs))


def base(text: str) -> tuple[str, Any]:
    """Return a field of a trial and its value, from `lr=2e-4`."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
