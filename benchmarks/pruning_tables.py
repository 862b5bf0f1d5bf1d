"""What each trial of `pruning_study.py` keeps of the tuned model of its seed, over seeds, and the table of it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pruning_trials import Trial
from seed_averages import averaged

from striate.tasks.scoring.compare import MACRO, compare_predictions

# What is chosen from given answers, and what the model writes itself.
CHOSEN = frozenset({"choice", "choice_logprob", "letter"})
_HEAD = "| trial | seeds | visual | kept, 95% | by seed | text | kept, 95% | choices kept | generated kept |"


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
    for kind in ("visual", "text"):
        found[kind] = {
            "scores": [round(100 * run["record"][kind], 2) for run in runs],
            "kept_by_seed": [
                round(100 * run["record"][kind] / base["record"][kind], 1)
                for run, base in zip(runs, bases, strict=True)
                if base["record"][kind]
            ],
            **_kept(runs, bases, kind),
        }
    found["choices"] = _of_metrics(runs, bases, chosen=True)
    found["generated"] = _of_metrics(runs, bases, chosen=False)
    found["seconds"] = {
        "cutting": [round(run["cutting"], 1) for run in runs if "cutting" in run],
        "healing": [round(run["heal"]["seconds"], 1) for run in runs if "heal" in run],
    }
    return found


def _kept(runs: list[dict[str, Any]], bases: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """Return retention with its interval over items, seeds averaged first."""
    rows = compare_predictions(averaged(bases, 200), averaged(runs, 200), 200, 0)
    row = next((row for row in rows if row.pack == MACRO and row.task == kind), None)
    if row is None:
        return {"kept": None, "n": 0}
    ends = (row.retention, row.retention_low, row.retention_high)
    return {"kept": [None if end is None else round(end, 1) for end in ends], "n": row.n}


def _of_metrics(runs: list[dict[str, Any]], bases: list[dict[str, Any]], *, chosen: bool) -> dict[str, Any]:
    """Return what is kept, pictures and text apart, of answers that are chosen, or of those that are written."""

    def only(run: dict[str, Any]) -> dict[str, Any]:
        kept = [one for one in run["predictions"] if (one["metric"] in CHOSEN) == chosen]
        return {**run, "predictions": kept}

    some, same = [only(run) for run in runs], [only(base) for base in bases]
    if not some[0]["predictions"]:
        return {}
    found = {kind: _kept(some, same, kind) for kind in ("visual", "text")}
    return {kind: kept for kind, kept in found.items() if kept["n"]}


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return Markdown with a row a line."""
    return "\n".join([_HEAD, "|" + "---|" * (_HEAD.count("|") - 1), *(_row(line) for line in lines)])


def _row(line: dict[str, Any]) -> str:
    visual, text = line["visual"], line["text"]
    cells = [
        line["trial"],
        str(line["seeds"]),
        f"{statistics.fmean(visual['scores']):.1f}",
        _interval(visual["kept"]),
        ", ".join(f"{value:.1f}" for value in visual["kept_by_seed"]),
        f"{statistics.fmean(text['scores']):.1f}",
        _interval(text["kept"]),
        _apart(line["choices"]),
        _apart(line["generated"]),
    ]
    return f"| {' | '.join(cells)} |"


def _interval(kept: Sequence[float | None] | None) -> str:
    """Return a retention with its interval, where there is one."""
    if kept is None or kept[0] is None:
        return ""
    return f"{kept[0]:.1f}%" + ("" if kept[1] is None else f" ({kept[1]:.1f} to {kept[2]:.1f})")


def _apart(found: dict[str, Any]) -> str:
    """Return what is kept of pictures and of text."""
    return ", ".join(f"{kind} {kept['kept'][0]:.1f}%" for kind, kept in found.items() if kept["kept"][0] is not None)
