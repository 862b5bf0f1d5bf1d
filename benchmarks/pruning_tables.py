"""What each trial of `pruning_study.py` keeps of the tuned model of its seed, over seeds, and the table of it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import markdown_table
from pruning_trials import Trial
from seed_averages import averaged

from striate.artifacts import Prediction
from striate.tasks.scoring.compare import MACRO, compare_predictions, macro_average, task_scores

# What is chosen from given answers; the others the model writes itself.
CHOSEN = frozenset({"choice", "choice_logprob", "letter"})
PARTS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "visual": lambda one: bool(one["image"]) and not _real(one),
    "text": lambda one: not one["image"],
    "text chosen": lambda one: not one["image"] and one["metric"] in CHOSEN,
    "text written": lambda one: not one["image"] and one["metric"] not in CHOSEN,
    "real": lambda one: _real(one),
    "real chosen": lambda one: _real(one) and one["metric"] in CHOSEN,
    "real written": lambda one: _real(one) and one["metric"] not in CHOSEN,
}
_SHOWN = ("visual", "text", "real")
_APART = ("text chosen", "text written", "real chosen", "real written")


def summarise(out: Path, wanted: Sequence[Trial]) -> list[dict[str, Any]]:
    """Return a line for the start model, one for the tuned ones, and one a trial that was done with any seed."""
    tuned = {int(file.stem.partition(",")[2]): json.loads(file.read_text()) for file in out.glob("tuned,*.json")}
    arms: dict[str, dict[int, dict[str, Any]]] = {}
    for trial in wanted:
        file = out / f"trial,{trial.name}.json"
        if file.exists() and trial.seed in tuned:
            arms.setdefault(trial.arm, {})[trial.seed] = json.loads(file.read_text())
    lines = [_line("tuned", list(tuned.values()), list(tuned.values()))] if tuned else []
    if tuned and (out / "start.json").exists():
        start = json.loads((out / "start.json").read_text())
        lines.append(_line("start", [start] * len(tuned), list(tuned.values())))
    return lines + [_line(arm, list(runs.values()), [tuned[seed] for seed in runs]) for arm, runs in arms.items()]


def _line(name: str, runs: list[dict[str, Any]], bases: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of one arm; `bases` are the tuned models of the same seeds."""
    found: dict[str, Any] = {"trial": name, "seeds": len(runs), "layers_removed": runs[0].get("removed")}
    for part, want in PARTS.items():
        if any(want(one) for one in runs[0]["predictions"]):
            by_seed = [compared([run], [base], part) for run, base in zip(runs, bases, strict=True)]
            kept = [one["kept"][0] for one in by_seed if one["kept"]]
            found[part] = {**compared(runs, bases, part), "kept_by_seed": kept}
    found["seconds"] = {
        "cutting": [round(run["cutting"], 1) for run in runs if "cutting" in run],
        "healing": [round(run["heal"]["seconds"], 1) for run in runs if "heal" in run],
    }
    return found


def _real(one: dict[str, Any]) -> bool:
    return bool(one["pack"].startswith("real-"))


def _only(run: dict[str, Any], want: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return an evaluation with the answers that are wanted alone."""
    return {**run, "predictions": [one for one in run["predictions"] if want(one)]}


def _key(one: dict[str, Any]) -> tuple[str, str, str]:
    return one["pack"], one["task"], one["id"]


def compared(runs: list[dict[str, Any]], bases: list[dict[str, Any]], part: str) -> dict[str, Any]:
    """Return each run's score in a part of `PARTS`, and what the runs keep of the bases with its interval over items.

    Items are averaged over seeds first; those that some were not asked are left out of all.
    """
    kind: Any = "text" if part.startswith("text") else "visual"
    shared = set.intersection(*({_key(one) for one in run["predictions"]} for run in (*runs, *bases)))
    some, same = (
        [_only(run, lambda one: _key(one) in shared and PARTS[part](one)) for run in group] for group in (runs, bases)
    )
    scores = [macro_average(task_scores([Prediction(**one) for one in run["predictions"]], 0, 0), kind) for run in some]
    rows = compare_predictions(averaged(same, 0), averaged(some, 0), 0, 0)
    row = next((row for row in rows if row.pack == MACRO and row.task == kind), None)
    found: dict[str, Any] = {"scores": [round(100 * (score or 0), 2) for score in scores]}
    if row is None or row.retention is None:
        return {**found, "kept": None, "n": 0}
    ends = (row.retention, row.retention_low, row.retention_high)
    return {**found, "kept": [None if end is None else round(end, 1) for end in ends], "n": row.n}


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return Markdown with a row a line: scores and what is kept, by seed, then the kinds of answers apart."""
    head = ["trial", "seeds"]
    for part in _SHOWN:
        head += [part, "kept, 95%", "by seed"]
    return markdown_table.table([*head, *(f"{part} kept" for part in _APART)], map(_row, lines))


def _row(line: dict[str, Any]) -> list[str]:
    cells = [line["trial"], str(line["seeds"])]
    for part in _SHOWN:
        if part not in line:
            cells += ["", "", ""]
            continue
        found = line[part]
        by_seed = ", ".join(f"{value:.1f}" for value in found["kept_by_seed"])
        cells += [f"{statistics.fmean(found['scores']):.1f}", interval(found["kept"]), by_seed]
    return cells + [interval(line[part]["kept"]) if part in line else "" for part in _APART]


def interval(kept: Sequence[float | None] | None) -> str:
    """Return a retention with its interval, where there is one."""
    if kept is None or kept[0] is None:
        return ""
    return f"{kept[0]:.1f}%" + ("" if kept[1] is None else f" ({kept[1]:.1f} to {kept[2]:.1f})")
