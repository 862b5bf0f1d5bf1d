#!/usr/bin/env python3
"""Measure what pruning costs and what compensation and healing give back: rankings, counts, seeds, on the same items.

    python benchmarks/pruning_study.py MODEL DATA --out results/pruning --seeds 0 1 2 --jobs 6

MODEL is an LVLM's folder, DATA a folder of packs (train.json, test.jsonl, held_out.json; `rendered_packs.py` makes
some, `own_stories.py` plain text that the model writes itself). Every seed's model is tuned, its layers are ranked by
the held-out samples, and each trial of `pruning_trials.py` prunes, compensates and heals a copy of it and is asked all
test items. Several processes take what is not done from `OUT`, each thing once, and hold on to their models; one that
was stopped is begun again by the next call. Prints one row a trial: scores, and retention against the tuned model of
the same seed, whole and of choices and generated answers apart, and of packs whose folder begins with `real-`.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from pruning_plan import base, best_of, ranked, tasks, wanted
from pruning_tables import summarise, table
from pruning_trials import BY_PLACE, GREEDY, GROUPS, REFITTING, STEPS, Trial
from refit_rankings import after_each_cut, by_error
from study_parts import Parts, options
from task_queue import Task, launch, work


class Study(Parts):
    """What one process holds besides: the tuned models and teacher's rows that it has loaded."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Take the command line."""
        super().__init__(args)
        self._tuned: dict[int | None, Any] = {}
        self._teachers: dict[int, Any] = {}

    @cached_property
    def held(self) -> list[Any]:
        """The calibration set."""
        from striate.data.reading import read_many

        return read_many(sorted(self.args.data.glob("*/held_out.json")), self.args.calibration, 0)

    @cached_property
    def pool(self) -> list[Any]:
        """The samples that heal are drawn of these: as many pictures as the longest trial takes, and all plain text."""
        from striate.data.reading import read_many

        pictured = [sample for sample in self.samples if sample.images]
        most = max(STEPS) * self.args.batch_size
        # Drawn of all packs: in the order of files the first ones would be of one pack alone.
        drawn = random.Random(0).sample(pictured, min(most, len(pictured)))
        return [*drawn, *self.plain, *read_many(sorted(self.args.data.glob("*/heal_text.json")))]

    @cached_property
    def plain(self) -> list[Any]:
        """The plain text of the training data."""
        return [sample for sample in self.samples if not sample.images]

    def fresh(self, seed: int | None) -> Any:
        """Return a copy of a tuned model, or of the start model, with its processor."""
        from striate.models.io.load import load_model

        if seed not in self._tuned:
            place = self.args.model if seed is None else self.out / f"tuned-{seed}" / "checkpoint"
            self._tuned[seed] = load_model(place, merge=True)
        loaded = self._tuned[seed]
        return copy.deepcopy(loaded.model), loaded.processor

    def collator(self, processor: Any) -> Any:
        """Return what encodes samples."""
        from striate.data.collate import Collator

        return Collator(processor, self.train().max_length, train=True)

    # What can be done, by the first word of its name; each returns what is written.

    def do(self, task: Task) -> dict[str, Any]:
        """Do a task."""
        found: dict[str, Any] = getattr(self, f"do_{task.name.partition(',')[0]}")(*task.given)
        return found

    def do_start(self) -> dict[str, Any]:
        """Ask the start model."""
        return self.evaluated(*self.fresh(None))

    def do_tuned(self, seed: int) -> dict[str, Any]:
        """Tune one seed's model and ask it."""
        model, processor = self.fresh(None)
        region, folder = self.region(self.args.region, model), self.out / f"tuned-{seed}"
        workers = self.args.readers if seed == self.args.seeds[0] else self.args.workers
        record = self.tune(model, processor, region, self.train(), seed, folder, workers)
        del model
        return self.evaluated(*self.fresh(seed), train=record.model_dump(mode="json"))

    def do_best(self, stage: int) -> dict[str, Any]:
        """Choose what the next stages share."""
        return best_of(self.args, stage)

    def do_rank(self, seed: int | None, ranking: str, weight: float, most: int) -> Any:
        """Return the cuts of a greedy ranking, or the scores of a one-shot one."""
        from striate.pruning.greedy_ranking import Question, calibration, rank_greedily
        from striate.stages.analyze import analyze

        model, processor = self.fresh(seed)
        began = time.perf_counter()
        if ranking not in GREEDY:
            scores = analyze(model, processor, self.held, [ranking], batch_size=self.args.batch)
            return {"scores": scores.model_dump(mode="json"), "ranking": time.perf_counter() - began}
        batches = calibration(self.held, self.collator(processor), self.args.batch)
        region, question = self.region(self.args.region, model), Question(ranking.partition("+")[0], weight)

        def fresh() -> Any:
            return self.fresh(seed)[0]

        if ranking == "refit-error":
            cuts = by_error(fresh, batches, region, most)
        elif ranking in REFITTING:
            cuts = after_each_cut(fresh, batches, region, most, question)
        else:
            cuts = rank_greedily(model, batches, region, most, question)
        return {"cuts": [cut.model_dump(mode="json") for cut in cuts], "ranking": time.perf_counter() - began}

    def do_teacher(self, seed: int) -> dict[str, Any]:
        """Keep what a tuned model says of the samples that heal; its hidden states of the first seed alone."""
        from striate.config import HealSection
        from striate.healing.teacher_pass import teacher_rows

        model, processor = self.fresh(seed)
        section = HealSection(steps=1, hidden=float(seed == self.args.seeds[0]))
        options = {"batch_size": self.args.batch_size, "workers": self.args.readers}
        folder = self.out / f"teacher-{seed}"
        rows = teacher_rows(model, self.pool, self.collator(processor), section, folder=folder, key="rows", **options)
        return {"rows": len(rows)}

    def do_trial(self, trial: Trial) -> dict[str, Any]:
        """Prune, compensate, heal (or tune) and ask one model."""
        model, processor = self.fresh(None if trial.before else trial.seed)
        began = time.perf_counter()
        record = self.cut(trial, model, processor)
        facts: dict[str, Any] = {"trial": trial.name, "removed": record.removed, "cutting": time.perf_counter() - began}
        if record.compensation:
            facts["compensation"] = record.compensation.model_dump(mode="json")
        if trial.before:
            model, facts["train"] = self.tuned_after(trial, model, processor, record)
        elif trial.steps:
            model, healed = self.heal(trial, model, processor, record)
            facts["heal"] = healed.model_dump(mode="json")
        return self.evaluated(model, processor, **facts)

    def tuned_after(self, trial: Trial, model: Any, processor: Any, record: Any) -> tuple[Any, dict[str, Any]]:
        """Tune a model that was pruned first; return it and the record."""
        from striate.models.io.load import load_model
        from striate.models.surgery.renumber import renumbered

        region = self.region("all", model)
        if trial.region == "region":
            region = renumbered(record.region, record.old_to_new)
        folder = self.out / f"before-{trial.region}-{trial.seed}"
        tuned = self.tune(model, processor, region, self.train(), trial.seed, folder, self.args.workers)
        return load_model(folder / "checkpoint", merge=True).model, tuned.model_dump(mode="json")

    def cut(self, trial: Trial, model: Any, processor: Any) -> Any:
        """Remove the trial's layers, in place; return the record."""
        from striate.artifacts import Cut, Scores
        from striate.pruning.compensation.compensate import compensate
        from striate.pruning.greedy_ranking import calibration
        from striate.stages.prune import prune

        found = json.loads((self.out / ranked(trial)).read_text()) if trial.ranking not in BY_PLACE else {}
        batches = calibration(self.held, self.collator(processor), self.args.batch)
        how, _, deep = trial.compensate.partition("-")
        return prune(
            model,
            self.region(self.args.region, model),
            trial.remove,
            Scores(**found["scores"]) if "scores" in found else None,
            "answer-loss" if trial.ranking in REFITTING else trial.ranking,
            cuts=[Cut(**cut) for cut in found.get("cuts", ())][: trial.remove],
            compensate=None
            if trial.compensate == "none"
            else lambda removed: compensate(model, batches, removed, how=how, deep=bool(deep)),  # type: ignore[arg-type]
        )[1]

    def heal(self, trial: Trial, model: Any, processor: Any, record: Any) -> Any:
        """Heal a pruned model; return it and the record."""
        from striate.config import HealSection
        from striate.healing.sample_mix import healing_samples
        from striate.healing.teacher_pass import stored_rows
        from striate.stages.heal import Healing, heal

        fields = ("steps", "region", "ce", "kl", "hidden", "text", "lr", "method")
        section = HealSection(**{name: getattr(trial, name) for name in fields})
        pictured = [sample for sample in self.pool if sample.images]
        pool = self.pool if trial.stories else [*pictured, *self.plain]
        samples = healing_samples(pool, section, self.args.batch_size, trial.seed)
        if section.needs_teacher and trial.seed not in self._teachers:
            self._teachers[trial.seed] = stored_rows(self.out / f"teacher-{trial.seed}", "rows", self.pool)
        teacher = self._teachers[trial.seed] if section.needs_teacher else None
        machine = self.machine(self.args.workers)
        return heal(model, processor, Healing(record, samples, teacher, section, self.train(), machine, trial.seed))


def main() -> None:
    """Run what is missing, and print what each trial keeps."""
    parser = options(__doc__)
    parser.add_argument("--out", type=Path, default=Path("pruning"))
    stage = {"nargs": "+", "action": "append", "choices": list(GROUPS)}
    parser.add_argument("--groups", help="once a stage; each is made in the way that was best before", **stage)
    parser.add_argument("--base", nargs="+", type=base, default=[], help="of healing, such as lr=2e-4 text=0.5")
    parser.add_argument("--region", default="uniform:25%")
    parser.add_argument("--calibration", type=int, default=256, help="held-out samples that layers are ranked by")
    parser.add_argument("--batch", type=int, default=32, help="samples side by side while ranking")
    args = parser.parse_args()
    args.groups = args.groups or [["ideas"], ["ways", "cuts", "before", "finalists"], ["healed", "parts", "rankings"]]
    if args.until:
        work(args.out, lambda: list(dict.fromkeys(tasks(args))), Study(args).do, args.until)
        return
    launch(args.out, args.jobs, args.devices, args.minutes, join=args.join)
    lines = summarise(args.out, list(dict.fromkeys(trial for stage in wanted(args) for trial in stage)))
    (args.out / "summary.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(table(lines))


if __name__ == "__main__":
    main()
