"""The plan of `pruning_study.py`: which trials are asked for, what each needs, and which of them is best so far."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

from pruning_tables import summarise
from pruning_trials import BY_PLACE, CHOSEN, ONE_SHOT, REFITTING, REMOVED, STEPS, Trial, trials
from task_queue import Task

# What is chosen after each stage, from trials of `CHOSEN` removed layers: fields of the later stages' trials.
BEST = "best"
# Cuts of a ranking that takes long.
SOME = 10


def wanted(args: argparse.Namespace) -> list[list[Trial]]:
    """Return the trials of each stage, as far as what they are healed and compensated by is known."""
    found: list[list[Trial]] = []
    fields = dict(args.base)
    by_steps: dict[int, dict[str, Any]] = {}
    for number, groups in enumerate(args.groups):
        found.append(trials(args.seeds, groups, fields, by_steps))
        choice = args.out / f"{BEST},{number}.json"
        if not choice.exists():
            break
        best = json.loads(choice.read_text())
        fields |= best["cut"]
        by_steps |= {int(steps): way for steps, way in best["healed"].items()}
    return found


def best_of(args: argparse.Namespace, number: int) -> dict[str, Any]:
    """Return what keeps most among the first seed's trials so far, visual and text weighed alike.

    `cut` says how layers go where no healing follows, `healed` how many steps heal: as the longest of up to as many
    that was tried with several regions or rates.
    """
    done = [trial for stage in wanted(args)[: number + 1] for trial in stage]
    asked = [trial for trial in done if trial.remove == CHOSEN and not trial.before]
    first = [trial for trial in asked if trial.seed == args.seeds[0]]
    kept = {
        line["trial"]: _kept(line) for line in summarise(args.out, first) if line["trial"] not in ("tuned", "start")
    }
    tried = [trial for trial in first if trial.arm in kept]
    cut = _best([trial for trial in tried if not trial.steps], kept, ("ranking", "weight", "compensate"))
    healed = {
        steps: _best([trial for trial in tried if trial.steps == steps], kept, ("region", "method", "lr"))
        for steps in STEPS
    }
    return {"cut": cut, "healed": {steps: way for steps, way in healed.items() if way}}


def _kept(line: dict[str, Any]) -> float:
    # Where the tuned model gets nothing right there is nothing to keep.
    return sum(float((line[part]["kept"] or [0.0])[0]) for part in ("visual", "text"))


def _best(tried: Sequence[Trial], kept: dict[str, float], fields: Sequence[str]) -> dict[str, Any]:
    if not tried:
        return {}
    best = max(tried, key=lambda trial: kept[trial.arm])
    return {name: getattr(best, name) for name in fields}


def ranked(trial: Trial) -> str:
    """Return the name of the file of a trial's ranking; one-shot scores are the start model's, as in a run."""
    return f"{_ranking(trial)[0]}.json"


def _ranking(trial: Trial) -> tuple[str, tuple[Any, ...]]:
    """Return the name of a ranking, and with what it is made: seed or None, which, weight of text, how many cuts."""
    start = trial.before or trial.ranking in ONE_SHOT
    # Refitting after each cut takes long: no more of these than are asked for.
    most = max(REMOVED) if trial.remove > SOME or trial.ranking not in REFITTING else SOME
    name = f"rank,{'start' if start else trial.seed},{trial.ranking},{trial.weight:g},{most}"
    return name, (None if start else trial.seed, trial.ranking, trial.weight, most)


def tasks(args: argparse.Namespace) -> Iterator[Task]:
    """Yield everything to do in order, as far as it is known."""
    # The first keeps the vision features that the others read, and compiles what they find compiled.
    first = args.seeds[0]
    for seed in args.seeds:
        yield Task(f"tuned,{seed}", (seed,), () if seed == first else (f"tuned-{first}/train_log.jsonl",))
    yield Task("start")
    for number, stage in enumerate(wanted(args)):
        yield from _needed(stage)
        for trial in stage:
            needs = [] if trial.before else [f"tuned,{trial.seed}.json"]
            needs += [f"teacher,{trial.seed}.json"] if trial.steps else []
            needs += [] if trial.ranking in BY_PLACE else [ranked(trial)]
            yield Task(f"trial,{trial.name}", (trial,), tuple(needs))
        if number + 1 < len(args.groups):
            waits = [trial for trial in stage if trial.remove == CHOSEN and trial.seed == first and not trial.before]
            yield Task(f"{BEST},{number}", (number,), after=tuple(f"trial,{trial.name}" for trial in waits))


def _needed(stage: Sequence[Trial]) -> Iterator[Task]:
    """Yield the rankings and teachers of a stage."""
    for trial in stage:
        if trial.ranking not in BY_PLACE:
            name, given = _ranking(trial)
            yield Task(name, given, () if given[0] is None else (f"tuned,{given[0]}.json",))
    for seed in sorted({trial.seed for trial in stage if trial.steps}):
        yield Task(f"teacher,{seed}", (seed,), (f"tuned,{seed}.json",))


def base(text: str) -> tuple[str, Any]:
    """Return a field of a trial and its value, from `lr=2e-4`."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
