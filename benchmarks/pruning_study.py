#!/usr/bin/env python3
"""Measure what pruning costs and what compensation and healing give back: rankings, counts, seeds, on the same items.

    python benchmarks/pruning_study.py MODEL DATA --out results/pruning --seeds 0 1 2 --jobs 6

MODEL is an LVLM's folder, DATA a folder of packs (train.json, test.jsonl, held_out.json; `rendered_packs.py` makes
some). Every seed's model is tuned, its layers are ranked by the held-out samples, and each trial of `pruning_trials.py`
prunes, compensates and heals a copy of it and is asked all test items. Several processes take what is not done from
`OUT`, each thing once, and hold on to their models; one that was stopped is begun again by the next call. Prints one
JSON line a trial: scores, and retention against the tuned model of the same seed, whole and of choices and generated
answers apart.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from pruning_tables import summarise, table
from pruning_trials import BY_PLACE, GREEDY, GROUPS, ONE_SHOT, Trial, trials

TRAIN: dict[str, Any] = {
    "method": "full",
    "lr": 1.6e-3,
    "projector_lr": 4e-4,
    "max_length": 1024,
    "packing": True,
    "save_steps": 1000,
}


class Study:
    """What one process holds: settings, samples, packs, and the tuned models that it has loaded."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Take the command line; everything is read when it is first asked for."""
        self.args, self.out = args, args.out
        self._tuned: dict[int | None, Any] = {}
        self._teachers: dict[int, Any] = {}

    @cached_property
    def samples(self) -> list[Any]:
        """The training samples."""
        from striate.data.reading import read_many

        return read_many(sorted(self.args.data.glob("*/train.json")), self.args.samples, 0)

    @cached_property
    def held(self) -> list[Any]:
        """The calibration set."""
        from striate.data.reading import read_many

        return read_many(sorted(self.args.data.glob("*/held_out.json")), self.args.calibration, 0)

    @cached_property
    def packs(self) -> list[Any]:
        """The test packs."""
        from striate.tasks.packs.reader import read_pack

        return [read_pack(folder.parent, self.args.limit) for folder in sorted(self.args.data.glob("*/test.jsonl"))]

    @cached_property
    def machine(self) -> Any:
        """The section `machine`."""
        from striate.config import MachineSection

        return MachineSection(
            micro_batch=self.args.batch_size,
            eval_batch=256,
            pack_tokens=self.args.pack_tokens,
            workers=self.args.workers,
            compile=self.args.compile,
            cache_vision=self.args.cache_vision,
        )

    @cached_property
    def train(self) -> Any:
        """The section `train`."""
        from striate.config import TrainSection

        args = self.args
        return TrainSection(**TRAIN, batch_size=args.batch_size, epochs=args.epochs, max_steps=args.max_steps)

    def region(self, model: Any) -> Any:
        """Return the region of the whole model."""
        from striate.selectors.spec.grammar import resolve

        return resolve(self.args.region, model.config.get_text_config().num_hidden_layers)

    def fresh(self, seed: int | None) -> Any:
        """Return a copy of a tuned model, or of the start model, with its processor."""
        from striate.models.io.load import load_model

        if seed not in self._tuned:
            self._tuned[seed] = load_model(self.place(seed), merge=True)
        loaded = self._tuned[seed]
        return copy.deepcopy(loaded.model), loaded.processor

    def place(self, seed: int | None) -> Path:
        """Return the folder of a tuned model, or of the start model."""
        start: Path = self.args.model
        return start if seed is None else self.out / f"tuned-{seed}" / "checkpoint"

    def collator(self, processor: Any) -> Any:
        """Return what encodes samples."""
        from striate.data.collate import Collator

        return Collator(processor, self.train.max_length, train=True)

    def evaluated(self, model: Any, processor: Any, **facts: Any) -> dict[str, Any]:
        """Return what is written of a model: its record and every item's score."""
        from striate.config import EvaluateSection
        from striate.stages.evaluate import evaluate

        began = time.perf_counter()
        record, answers = evaluate(
            model,
            processor,
            self.packs,
            label="model",
            model_name="model",
            config=EvaluateSection(bootstrap=200, max_new_tokens=24),
            machine=self.machine,
        )
        kept = {"id", "pack", "task", "metric", "image", "score", "weight", "picture"}
        return {
            **facts,
            "evaluating": round(time.perf_counter() - began, 1),
            "record": record.model_dump(mode="json"),
            "predictions": [{**one.model_dump(mode="json", include=kept), "question": ""} for one in answers],
        }

    def tune(self, model: Any, processor: Any, region: Any, seed: int, folder: Path) -> Any:
        """Tune `region` of a model, in place; return the record."""
        from striate.stages.train import train

        return train(
            model,
            processor,
            region,
            self.samples,
            self.train,
            self.machine,
            seed=seed,
            out=folder / "checkpoint",
            work_dir=folder / "work",
            log=folder / "train_log.jsonl",
            base_path=str(self.args.model),
        )

    # What can be done, by the first word of its name; each returns what is written.

    def do_start(self) -> dict[str, Any]:
        """Ask the start model."""
        return self.evaluated(*self.fresh(None))

    def do_tuned(self, seed: int) -> dict[str, Any]:
        """Tune one seed's model and ask it."""
        model, processor = self.fresh(None)
        record = self.tune(model, processor, self.region(model), seed, self.out / f"tuned-{seed}")
        del model
        return self.evaluated(*self.fresh(seed), train=record.model_dump(mode="json"))

    def do_rank(self, seed: int | None, ranking: str) -> Any:
        """Return the cuts of a greedy ranking, or the scores of a one-shot one."""
        from striate.pruning.greedy_ranking import Question, calibration, rank_greedily
        from striate.stages.analyze import analyze

        model, processor = self.fresh(seed)
        began = time.perf_counter()
        if ranking not in GREEDY:
            scores = analyze(model, processor, self.held, [ranking], batch_size=self.args.batch)
            return {"scores": scores.model_dump(mode="json"), "seconds": time.perf_counter() - began}
        batches = calibration(self.held, self.collator(processor), self.args.batch)
        most = max(trial.remove for trial in trials(self.args.seeds, self.args.groups))
        cuts = rank_greedily(model, batches, self.region(model), most, Question(ranking))
        return {"cuts": [cut.model_dump(mode="json") for cut in cuts], "seconds": time.perf_counter() - began}

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
        from striate.models.surgery.renumber import renumbered

        model, processor = self.fresh(None if trial.before else trial.seed)
        began = time.perf_counter()
        record = self.cut(trial, model, processor)
        facts: dict[str, Any] = {"trial": trial.name, "removed": record.removed, "cutting": time.perf_counter() - began}
        if record.compensation:
            facts["compensation"] = record.compensation.model_dump(mode="json")
        if trial.before:
            from striate.models.io.load import load_model
            from striate.selectors.spec.grammar import resolve

            layers = len(record.kept)
            region = renumbered(record.region, record.old_to_new) if trial.region == "region" else None
            folder = self.out / f"before-{trial.region}-{trial.seed}"
            tuned = self.tune(model, processor, region or resolve(trial.region, layers), trial.seed, folder)
            facts["train"] = tuned.model_dump(mode="json")
            model = load_model(folder / "checkpoint", merge=True).model
        elif trial.steps:
            model, healed = self.heal(trial, model, processor, record)
            facts["heal"] = healed.model_dump(mode="json")
        return self.evaluated(model, processor, **facts)

    def cut(self, trial: Trial, model: Any, processor: Any) -> Any:
        """Remove the trial's layers, in place; return the record."""
        from striate.artifacts import Cut, Scores
        from striate.pruning.compensation.compensate import compensate
        from striate.pruning.greedy_ranking import calibration
        from striate.stages.prune import prune

        region, found = self.region(model), {}
        if trial.ranking not in BY_PLACE:
            found = json.loads(self.ranked(trial).read_text())
        batches = calibration(self.held, self.collator(processor), self.args.batch)
        return prune(
            model,
            region,
            trial.remove,
            Scores(**found["scores"]) if "scores" in found else None,
            trial.ranking,
            cuts=[Cut(**cut) for cut in found.get("cuts", ())][: trial.remove],
            compensate=None
            if trial.compensate == "none"
            else lambda removed: compensate(model, batches, removed, how=trial.compensate),  # type: ignore[arg-type]
        )[1]

    def ranked(self, trial: Trial) -> Path:
        """Return the file of a trial's ranking; one-shot scores are the start model's, as in a run."""
        start = trial.before or trial.ranking in ONE_SHOT
        path: Path = self.out / f"rank,{'start' if start else trial.seed},{trial.ranking}.json"
        return path

    def healing(self, trial: Trial) -> Any:
        """Return the section `heal` of a trial."""
        from striate.config import HealSection

        fields = ("steps", "region", "kl", "hidden", "text", "lr")
        return HealSection(**{name: getattr(trial, name) for name in fields})

    @cached_property
    def pool(self) -> list[Any]:
        """The samples that heal are drawn of these: all plain text, and as many pictures as the longest trial takes."""
        pictured = [sample for sample in self.samples if sample.images]
        most = max(trial.steps for trial in trials(self.args.seeds, self.args.groups)) * self.args.batch_size
        return [*pictured[:most], *(sample for sample in self.samples if not sample.images)]

    def teacher(self, seed: int) -> Any:
        """Return what the tuned model said of the pool, read once."""
        from striate.healing.teacher_pass import stored_rows

        if seed not in self._teachers:
            self._teachers[seed] = stored_rows(self.out / f"teacher-{seed}", "rows", self.pool)
        return self._teachers[seed]

    def heal(self, trial: Trial, model: Any, processor: Any, record: Any) -> Any:
        """Heal a pruned model; return it and the record."""
        from striate.healing.sample_mix import healing_samples
        from striate.stages.heal import Healing, heal

        section = self.healing(trial)
        samples = healing_samples(self.pool, section, self.args.batch_size, trial.seed)
        teacher = self.teacher(trial.seed) if section.needs_teacher else None
        return heal(model, processor, Healing(record, samples, teacher, section, self.train, self.machine, trial.seed))


def tasks(args: argparse.Namespace) -> Iterator[tuple[str, tuple[Any, ...], list[str]]]:
    """Yield everything to do in order: its name, what it is asked with, and the files that must be there before."""
    wanted = trials(args.seeds, args.groups)
    for seed in args.seeds:
        # The first keeps the vision features that the others read, and compiles what they find compiled.
        yield f"tuned,{seed}", (seed,), [] if seed == args.seeds[0] else [f"tuned-{args.seeds[0]}/train_log.jsonl"]
    yield "start", (), []
    for ranking in dict.fromkeys(trial.ranking for trial in wanted):
        if ranking in ONE_SHOT or any(trial.before and trial.ranking == ranking for trial in wanted):
            yield f"rank,start,{ranking}", (None, ranking), []
        if ranking in GREEDY:
            for seed in sorted({trial.seed for trial in wanted if trial.ranking == ranking and not trial.before}):
                yield f"rank,{seed},{ranking}", (seed, ranking), [f"tuned,{seed}.json"]
    for seed in sorted({trial.seed for trial in wanted if trial.steps}):
        yield f"teacher,{seed}", (seed,), [f"tuned,{seed}.json"]
    for trial in wanted:
        first = [] if trial.before else [f"tuned,{trial.seed}.json"]
        first += [f"teacher,{trial.seed}.json"] if trial.steps else []
        ranked = Study(args).ranked(trial).name
        yield f"trial,{trial.name}", (trial,), first + ([] if trial.ranking in BY_PLACE else [ranked])


def work(args: argparse.Namespace) -> None:
    """Do what is not done and not claimed, until nothing is left or time is up."""
    study, listed = Study(args), list(tasks(args))
    while time.time() < args.until:
        left = [task for task in listed if not (args.out / f"{task[0]}.claim").exists()]
        ready = [task for task in left if all(_there(args.out / name) for name in task[2])]
        if not left:
            return
        if not (ready and _claim(args.out / f"{ready[0][0]}.claim")):
            time.sleep(0.2)
            continue
        name, given, _ = ready[0]
        began = time.perf_counter()
        try:
            found = getattr(study, f"do_{name.partition(',')[0]}")(*given)
        except Exception:
            (args.out / f"{name}.failed").write_text(traceback.format_exc())
            print(f"{name}: failed", flush=True)
            continue
        _write(args.out / f"{name}.json", {**found, "name": name, "seconds": round(time.perf_counter() - began, 1)})
        print(f"{name}: {time.perf_counter() - began:.1f} s", flush=True)


def _there(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _claim(path: Path) -> bool:
    """Return whether this process is the first to take what `path` stands for."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _write(path: Path, found: dict[str, Any]) -> None:
    path.with_suffix(".part").write_text(json.dumps(found))
    path.with_suffix(".part").replace(path)


def main() -> None:
    """Run what is missing, and print what each trial keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("pruning"))
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side on the device")
    parser.add_argument("--minutes", type=float, default=600, help="after which nothing new is begun")
    parser.add_argument("--region", default="uniform:25%")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--max-steps", type=int, help="of tuning, instead of epochs")
    parser.add_argument("--batch-size", type=int, default=64, help="samples a step")
    parser.add_argument("--samples", type=int, help="training samples, drawn once; all by default")
    parser.add_argument("--calibration", type=int, default=256, help="held-out samples that layers are ranked by")
    parser.add_argument("--batch", type=int, default=32, help="samples side by side while ranking")
    parser.add_argument("--limit", type=int, help="test items a pack")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--readers", type=int, default=4, help="processes that read the teacher's pictures")
    parser.add_argument("--pack-tokens", type=int, default=8192)
    parser.add_argument("--compile", default="auto")
    parser.add_argument("--cache-vision", default="disk")
    parser.add_argument("--until", type=float, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.until:
        work(args)
        return
    for claim in args.out.glob("*.claim"):
        if not (args.out / f"{claim.stem}.json").exists():
            claim.unlink()
    threads = str(max(1, (os.cpu_count() or 1) // (2 * args.jobs)))
    command = [sys.executable, *sys.argv, "--until", str(time.time() + 60 * args.minutes)]
    logs = [(args.out / f"process-{index}.log").open("ab") for index in range(args.jobs)]
    running = [
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={"OMP_NUM_THREADS": threads, **os.environ})
        for log in logs
    ]
    for process in running:
        process.wait()
    lines = summarise(args.out, trials(args.seeds, args.groups))
    (args.out / "summary.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(table(lines))


if __name__ == "__main__":
    main()
