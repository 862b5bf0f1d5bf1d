"""What each arm of `learning_rate_study.py` reaches, and keeps of tuning all layers at its best rate."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import markdown_table
from pruning_tables import PARTS, compared, interval

_SHOWN = ("visual", "text", "real")


def summarise(out: Path) -> list[dict[str, Any]]:
    """Return a line a region, method, rank and rate: held-out loss, scores, seconds, and what is kept."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for file in sorted(out.glob("arm,*.json")):
        run = json.loads(file.read_text())
        arm = run["arm"]
        share = arm.get("share", 1)
        region = arm["region"] if share == 1 else f"{arm['region']}, {share:g} of the steps"
        groups.setdefault((arm["method"], arm["rank"], region, arm["lr"]), []).append(run)
    bests = {kind: _best(groups, kind) for kind in {key[:3] for key in groups}}
    return [_line(key, runs, groups, bests) for key, runs in sorted(groups.items(), key=str)]


def _best(groups: dict[tuple[Any, ...], list[dict[str, Any]]], kind: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the key of a kind's rate with the most held-out matches; with the seed that all rates have."""
    same = [key for key in groups if key[:3] == kind]
    firsts = {key: min(groups[key], key=lambda run: run["arm"]["seed"]) for key in same}
    return max(same, key=lambda key: matching(firsts[key]))


def matching(run: dict[str, Any]) -> float:
    """Return the share of held-out answers about pictures that a tuned model gets right word for word."""
    return float(run["train"]["validation"]["last"]["visual_exact_match"])


def _line(
    key: tuple[Any, ...],
    runs: list[dict[str, Any]],
    groups: dict[tuple[Any, ...], list[dict[str, Any]]],
    bests: dict[tuple[Any, ...], tuple[Any, ...]],
) -> dict[str, Any]:
    method, rank, region, lr = key
    whole = bests.get((method, rank, "all"), bests.get((method, 32, "all")))
    records = [run["train"] for run in runs]
    found: dict[str, Any] = {
        "method": method,
        "rank": rank if method == "lora" else None,
        "region": region,
        "lr": lr,
        "best": bests[key[:3]] == key,
        "seeds": len(runs),
        "loss": [record["validation"]["last"] for record in records],
        "seconds": [round(record["seconds"], 1) for record in records],
        "steps": records[0]["steps"],
    }
    for part, want in PARTS.items():
        if any(want(one) for one in runs[0]["predictions"]):
            found[part] = compared(runs, groups[whole] if whole else runs, part)
    return found


def table(lines: list[dict[str, Any]]) -> str:
    """Return Markdown with a row a line; a star marks the rate with the most held-out matches."""
    head = ["method", "region", "lr", "seeds", "held-out loss", "held-out matches", "seconds"]
    for part in _SHOWN:
        head += [part, "kept of all layers, 95%"]
    return markdown_table.table(head, map(_row, lines))


def _row(line: dict[str, Any]) -> list[str]:
    method = line["method"] if line["rank"] is None else f"lora r {line['rank']}"
    losses = ", ".join(f"{loss['loss']:.4f}" for loss in line["loss"])
    matches = ", ".join(f"{100 * loss['visual_exact_match']:.1f}" for loss in line["loss"])
    cells = [
        method,
        line["region"],
        f"{line['lr']:g}{' *' if line['best'] else ''}",
        str(line["seeds"]),
        losses,
        matches,
    ]
    cells.append(f"{statistics.median(line['seconds']):.0f}")
    for part in _SHOWN:
        scores = line[part]["scores"] if part in line else []
        cells += [", ".join(f"{score:.1f}" for score in scores), interval(line[part]["kept"]) if scores else ""]
    return cells
