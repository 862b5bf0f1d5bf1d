#!/usr/bin/env python3
"""Measure what faster modes of training keep of what exact training learns: several seeds, all packs, paired intervals.

Every run trains the same start model on the same samples, and is evaluated on the same test items:

    python benchmarks/mode_quality.py MODEL DATA --out results/modes --seeds 0 1 2 --jobs 4

MODEL is an LVLM's folder, DATA a folder of packs (each with train.json, test.jsonl, or both). A run that is done is
not done again: its scores are `OUT/MODE-SEED.json`. Several runs share one device; their logs are `OUT/MODE-SEED.log`.
Modes that align again first train the projector alone on `--align`, a folder of packs too.

Prints one JSON line a mode and a table. Items are averaged over seeds first, then paired with the exact mode's by item;
intervals draw pictures. The spread between seeds stands beside them: it is what a single run can't tell.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mode_list import ALIGNING, EXACT, LORA, MODES, SETTINGS
from mode_tables import table
from seed_averages import averaged

from striate.artifacts import Prediction, TrainRecord
from striate.progress import Silent
from striate.tasks.scoring.compare import MACRO, compare_predictions


class Heard(Silent):
    """A progress that keeps what training says, so that a mode without effect does not pass for one that has it."""

    def __init__(self) -> None:
        """Begin with nothing said."""
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        """Keep the line and print it."""
        self.lines.append(text)
        print(text, flush=True)


def _trained(
    args: argparse.Namespace, start: Path, data: Path, region: str, train: Any, seed: int, out: Path
) -> tuple[TrainRecord, list[str]]:
    """Train the model in `start` on the packs in `data`; return the record and what training said."""
    import torch

    from striate.data.reading import read_many
    from striate.models.io.load import load_model
    from striate.selectors.spec.grammar import resolve
    from striate.stages.train import train as train_region

    loaded, heard = load_model(start), Heard()
    layers = loaded.model.config.get_text_config().num_hidden_layers
    record = train_region(
        loaded.model,
        loaded.processor,
        resolve(region, layers),
        read_many(sorted(data.glob("*/train.json")), args.samples, 0),
        train,
        _machine(args),
        seed=seed,
        out=out / "checkpoint",
        work_dir=out / "work",
        log=out / "train_log.jsonl",
        base_path=str(start),
        progress=heard,
    )
    del loaded
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return record, heard.lines


def _machine(args: argparse.Namespace) -> Any:
    """Return the section `machine` that the command line asks for."""
    from striate.config import MachineSection

    return MachineSection(
        micro_batch=64,
        pack_tokens=args.pack_tokens,
        workers=args.workers,
        compile=args.compile,
        cache_vision=args.cache_vision,
    )


def run_one(args: argparse.Namespace, name: str, seed: int) -> None:
    """Train and evaluate one mode with one seed, and write its scores."""
    import torch

    from striate.config import EvaluateSection, TrainSection
    from striate.models.io.load import load_model
    from striate.stages.evaluate import evaluate
    from striate.tasks.packs.reader import read_pack

    mode, out, began = MODES[name], args.out / f"{name}-{seed}", time.perf_counter()
    start: Path = args.model
    aligned: TrainRecord | None = None
    if mode.align is not None:
        settings = TrainSection(**{**ALIGNING, **mode.align})
        aligned, _ = _trained(args, start, args.align, "none", settings, seed, out / "aligned")
        start = out / "aligned" / "checkpoint"
    settings = TrainSection(**{**SETTINGS, "epochs": args.epochs, **_given(args), **mode.train})
    record, said = _trained(args, start, args.data, mode.region, settings, seed, out)
    trained = time.perf_counter()
    tuned = load_model(out / "checkpoint", merge=True)
    packs = [read_pack(folder.parent, args.limit) for folder in sorted(args.data.glob("*/test.jsonl"))]
    evaluation, answers = evaluate(
        tuned.model,
        tuned.processor,
        packs,
        label=name,
        model_name=name,
        config=EvaluateSection(bootstrap=args.bootstrap),
        machine=_machine(args),
    )
    found = {
        "mode": name,
        "seed": seed,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "train": record.model_dump(mode="json"),
        "aligned": aligned and aligned.model_dump(mode="json"),
        "said": said,
        "seconds": [round(trained - began, 1), round(time.perf_counter() - trained, 1)],
        "record": evaluation.model_dump(mode="json"),
        "predictions": [_slim(one) for one in answers],
    }
    (args.out / f"{name}-{seed}.json").write_text(json.dumps(found))


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of training that the command line names."""
    names = ("method", "lr", "projector_lr", "batch_size")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _slim(answer: Prediction) -> dict[str, Any]:
    """Return what a comparison needs of an answer."""
    kept = answer.model_dump(
        mode="json", include={"id", "pack", "task", "metric", "image", "score", "weight", "picture"}
    )
    return {**kept, "question": ""}


def run_all(args: argparse.Namespace) -> None:
    """Run what has not been run, several at a time, each in a process of its own."""
    waiting = [(name, seed) for seed in args.seeds for name in args.modes if not _file(args, name, seed).exists()]
    running: list[tuple[str, subprocess.Popen[bytes]]] = []
    warm = args.warm
    # Runs with a thread for every core each would wait for one another at every operation on the CPU.
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // (2 * args.jobs))), **os.environ}
    while waiting or running:
        for label, process in [one for one in running if one[1].poll() is not None]:
            running.remove((label, process))
            print(f"{label}: {'done' if not process.returncode else f'failed, see {label}.log'}", flush=True)
        # The first run keeps the vision features that the others read, and compiles what they find compiled.
        warm = warm or any(_trains(args, label) for label, _ in running)
        while waiting and len(running) < (args.jobs if warm else 1):
            name, seed = waiting.pop(0)
            command = [sys.executable, *sys.argv, "--one", name, str(seed)]
            with (args.out / f"{name}-{seed}.log").open("wb") as log:
                process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            running.append((f"{name}-{seed}", process))
        time.sleep(0.5)


def _trains(args: argparse.Namespace, label: str) -> bool:
    """Return whether a run has made its first step."""
    log = args.out / label / "train_log.jsonl"
    return bool(log.exists() and log.stat().st_size)


def _file(args: argparse.Namespace, name: str, seed: int) -> Path:
    """Return where a run's scores are."""
    path: Path = args.out / f"{name}-{seed}.json"
    return path


def summarise(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a line a mode that has runs: scores over seeds, and retention against the exact mode."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for name in args.modes:
        files = [_file(args, name, seed) for seed in args.seeds]
        if any(file.exists() for file in files):
            runs[name] = [json.loads(file.read_text()) for file in files if file.exists()]
    if EXACT not in runs:
        return []
    exact = {run["seed"]: run for run in runs[EXACT]}
    lines = []
    for name, found in runs.items():
        # The same seeds on both sides: they share the order of samples.
        both = [run for run in found if run["seed"] in exact]
        if not both:
            continue
        base = averaged([exact[run["seed"]] for run in both], args.bootstrap)
        other = averaged(both, args.bootstrap)
        rows = compare_predictions(base, other, args.bootstrap, 0)
        lines.append(_line(name, both, [exact[run["seed"]] for run in both], rows))
    return lines


def _line(name: str, runs: list[dict[str, Any]], exact: list[dict[str, Any]], rows: Sequence[Any]) -> dict[str, Any]:
    """Return the figures of one mode."""
    found: dict[str, Any] = {"mode": name, "says": MODES[name].says, "seeds": [run["seed"] for run in runs]}
    for kind in ("visual", "text"):
        scores = [100 * run["record"][kind] for run in runs]
        ratios = [100 * run["record"][kind] / base["record"][kind] for run, base in zip(runs, exact, strict=True)]
        row = next((row for row in rows if row.pack == MACRO and row.task == kind), None)
        found[kind] = {
            "scores": [round(score, 2) for score in scores],
            "retention_by_seed": [round(ratio, 1) for ratio in ratios],
            "retention": [round(value, 1) for value in (row.retention, row.retention_low, row.retention_high)]
            if row
            else None,
            "n": row.n if row else 0,
        }
    found["tasks"] = {
        f"{row.pack}/{row.task}": [round(100 * row.baseline_score, 1), round(100 * row.score, 1), row.n]
        for row in rows
        if row.pack != MACRO
    }
    found["train_s"] = [round(run["train"]["seconds"], 1) for run in runs]
    found["loss"] = [round(run["train"]["last_loss"], 4) for run in runs]
    found["device"] = runs[0]["device"]
    return found


def main() -> None:
    """Run what is missing, and print how the modes compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--align", type=Path, help="packs that modes which align again train the projector on")
    parser.add_argument("--out", type=Path, default=Path("modes"))
    parser.add_argument("--modes", nargs="+", choices=list(MODES), help="all that have what they need by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side on the device")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--method", choices=("lora", "full"), help=f"what trains; LoRA of rank {LORA['r']} by default")
    parser.add_argument("--lr", type=float, help=f"{SETTINGS['lr']} by default")
    parser.add_argument("--projector-lr", type=float, help=f"{SETTINGS['projector_lr']} by default")
    parser.add_argument("--batch-size", type=int, help=f"samples a step, {SETTINGS['batch_size']} by default")
    parser.add_argument("--samples", type=int, help="training samples, drawn once; all by default")
    parser.add_argument("--limit", type=int, help="test items a pack")
    parser.add_argument("--bootstrap", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pack-tokens", type=int, default=8192, help="tokens of a packed row")
    parser.add_argument("--compile", default="auto")
    parser.add_argument("--cache-vision", default="disk")
    parser.add_argument("--warm", action="store_true", help="features and compiled code are there: begin side by side")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.modes = args.modes or [name for name, mode in MODES.items() if args.align or mode.align is None]
    if args.align is None and any(MODES[name].align is not None for name in args.modes):
        parser.error("modes that align again need --align PACKS")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.one:
        run_one(args, args.one[0], int(args.one[1]))
        return
    run_all(args)
    lines = summarise(args)
    (args.out / "summary.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for line in lines:
        print(json.dumps(line))
    print(table(lines))


if __name__ == "__main__":
    main()
