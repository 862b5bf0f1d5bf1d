#!/usr/bin/env python3
"""Measure which learning rate suits a region: regions x methods x rates, seeds at the best ones, on the same items.

    python benchmarks/learning_rate_study.py MODEL DATA --out results/rates --seeds 0 1 2 --jobs 6

MODEL is an LVLM's folder, DATA a folder of packs (train.json, test.jsonl, held_out.json). Every arm tunes a copy of the
start model with the first seed; the rate with the most held-out answers that match exactly is then repeated with the
other seeds, so that test items choose nothing. Retention is of tuning all layers with the same method at its own best
rate. `--groups` names what is measured: `full`, `lora`, `rank` (LoRA of other ranks), `moving` (`moving:25%@20`: as
many layers, which move on by one every 20 steps; `lisa:25%@20`: as many, drawn anew; neither keeps the optimizer state
of layers that close).
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from learning_rate_tables import matching, summarise, table
from study_parts import Parts, options
from task_queue import Task, launch, work

# The lowest of the rates of each region; every next one is twice as high.
LOWEST = {
    "full": {"all": 1e-4, "uniform:50%": 2e-4, "uniform:25%": 4e-4, "uniform:4": 4e-4},
    "lora": {"all": 4e-4, "uniform:50%": 4e-4, "uniform:25%": 8e-4, "uniform:4": 8e-4},
}
# The middle ones first.
TIMES = (4, 2, 8, 1, 16)
RANK = 32
# What `full` found best: for pictures, and for pictures and text.
FOUND = (("all", 4e-4), ("uniform:25%", 8e-4), ("uniform:25%", 1.6e-3))
SHORT = (0.6, 0.75)
GROUPS = ("full", "lora", "rank", "moving", "seeds", "short")
MOVING = ("moving:25%@20", "lisa:25%@20")


@dataclass(frozen=True)
class Arm:
    """One training: of which layers, how, with which seed, and for which share of the steps."""

    region: str
    method: str
    lr: float
    rank: int = RANK
    seed: int = 0
    share: float = 1.0

    @property
    def name(self) -> str:
        """What tells it from the others."""
        rank = f",r{self.rank}" if self.method == "lora" else ""
        steps = f",{self.share:g} of the steps" if self.share < 1 else ""
        return f"{self.region},{self.method}{rank},{self.lr:g},{self.seed}{steps}"

    @property
    def kind(self) -> tuple[str, str, int]:
        """The same without rate and seed."""
        return self.region, self.method, self.rank


def arms(groups: Sequence[str], seed: int) -> Iterator[Arm]:
    """Yield the arms of one seed whose rates are compared."""
    for times in TIMES:
        for method in ("full", "lora"):
            if method in groups:
                for region, lowest in LOWEST[method].items():
                    # Fewer of the regions that are neither what is asked about nor what it is held against.
                    if method == "lora" and times not in TIMES[:3] and region not in ("all", "uniform:25%"):
                        continue
                    yield Arm(region, method, times * lowest, seed=seed)
    if "rank" in groups:
        for times in TIMES[:3]:
            lr = times * LOWEST["lora"]["uniform:25%"]
            yield from (Arm("uniform:25%", "lora", lr, rank, seed) for rank in (8, 128))
    if "moving" in groups:
        for times in TIMES[:3]:
            yield from (Arm(region, "full", times * LOWEST["full"]["uniform:25%"], seed=seed) for region in MOVING)


def given(groups: Sequence[str], seeds: Sequence[int]) -> Iterator[Arm]:
    """Yield the arms whose rates are known."""
    if "seeds" in groups:
        yield from (Arm(region, "full", lr, seed=seed) for seed in seeds for region, lr in FOUND)
    if "short" in groups:
        yield from (Arm("all", "full", 4e-4, seed=seeds[0], share=share) for share in SHORT)


def turns_of(name: str, num_layers: int) -> tuple[str, dict[str, Any]]:
    """Return the SPEC of an arm's region and `train.resample`, which moving ones have."""
    kind, _, rest = name.partition(":")
    if kind not in ("moving", "lisa"):
        return name, {}
    share, _, every = rest.partition("@")
    active = max(1, math.floor(float(share.removesuffix("%")) / 100 * num_layers + 0.5))
    order = "moving" if kind == "moving" else "random"
    return "all", {"active": active, "every": int(every), "order": order, "state": "drop"}


def repeated(out: Path, firsts: Sequence[Arm], seeds: Sequence[int]) -> list[Arm]:
    """Return each kind's arm of the most held-out matches for the other seeds, where all of its rates are done."""
    found: list[Arm] = []
    for kind in dict.fromkeys(arm.kind for arm in firsts):
        same = [arm for arm in firsts if arm.kind == kind]
        files = [out / f"arm,{arm.name}.json" for arm in same]
        if all(file.exists() for file in files):
            matches = [matching(json.loads(file.read_text())) for file in files]
            best = same[matches.index(max(matches))]
            found += [replace(best, seed=seed) for seed in seeds]
    return found


class Rates(Parts):
    """What one process holds."""

    @cached_property
    def held(self) -> list[Any]:
        """The samples that rates are chosen by."""
        from striate.data.reading import read_many

        return read_many(sorted(self.args.data.glob("*/held_out.json")), self.args.held_out, 0)

    def do(self, task: Task) -> dict[str, Any]:
        """Tune and ask one model, or the start model."""
        from striate.models.io.load import load_model

        if not task.given:
            return self.evaluated(*self.start())
        arm, first = task.given
        model, processor = self.start()
        lora = {"r": arm.rank, "alpha": 2 * arm.rank}
        spec, turns = turns_of(arm.region, model.config.get_text_config().num_hidden_layers)
        train = self.train(method=arm.method, lr=arm.lr, lora=lora, validate_every=1_000_000, resample=turns)
        if arm.share < 1:
            train = train.model_copy(update={"max_steps": round(arm.share * self.args.max_steps)})
        folder = self.out / f"work-{arm.name}"
        shutil.rmtree(folder, ignore_errors=True)
        workers = self.args.readers if first else self.args.workers
        region = self.region(spec, model)
        record = self.tune(model, processor, region, train, arm.seed, folder, workers, self.held)
        del model
        tuned = load_model(folder / "checkpoint", merge=True).model
        found = self.evaluated(tuned, processor, arm=vars(arm), train=record.model_dump(mode="json"))
        shutil.rmtree(folder / "checkpoint")
        return found


def tasks(args: argparse.Namespace) -> list[Task]:
    """Return everything to do, in order."""
    methods = [group for group in args.groups if group in ("full", "lora")]
    compared, known = list(arms(methods, args.seeds[0])), list(given(args.groups, args.seeds))
    later = [arm for arm in arms(args.groups, args.seeds[0]) if arm not in compared]
    ordered = [*compared, *repeated(args.out, compared, args.seeds[1:]), *known, *later]
    ordered = list(dict.fromkeys([*ordered, *repeated(args.out, later, args.seeds[1:])]))
    # The first keeps the vision features that the others read, and compiles what they find compiled.
    needs = (f"work-{ordered[0].name}/train_log.jsonl",) if args.cache_vision == "disk" else ()
    first = Task(f"arm,{ordered[0].name}", (ordered[0], True))
    return [first, Task("start"), *(Task(f"arm,{arm.name}", (arm, False), needs) for arm in ordered[1:])]


def main() -> None:
    """Run what is missing, and print what each arm reaches."""
    parser = options(__doc__)
    parser.add_argument("--out", type=Path, default=Path("rates"))
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS[:3])
    parser.add_argument("--held-out", type=int, default=384, help="samples that rates are chosen by")
    args = parser.parse_args()
    if args.until:
        work(args.out, lambda: tasks(args), Rates(args).do, args.until)
        return
    launch(args.out, args.jobs, args.devices, args.minutes, join=args.join)
    lines = summarise(args.out)
    (args.out / "summary.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(table(lines))


if __name__ == "__main__":
    main()
