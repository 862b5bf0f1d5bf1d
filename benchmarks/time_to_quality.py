#!/usr/bin/env python3
"""How long until a model answers as well as after tuning all of its layers with other tools, on one accelerator.

    python benchmarks/rendered_packs.py builtin data --pictures 22000
    python benchmarks/time_to_quality.py builtin data --out lines.jsonl
    python benchmarks/time_to_quality.py builtin data --out lines.jsonl --arms "uniform:25%" all   # others later

Trains the ways of `quality_arms.py` one after the other, each in a process of its own: the same samples, order,
steps and schedule, each at the rate that the region study found for it. Every few steps the same held-out samples
are asked: the share of answers that greedy decoding would write, and the loss. Printed are the seconds of steps
until the score that `hf` ends with, and 98 and 95% of it, and until its loss. Measuring takes no part in them; what
is neither (loading, proofs, saving) is told beside them, and so is what the first steps take over later ones, as
kernels are compiled. One seed, and a score that goes up and down a little: the last percents are no finer than
that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import markdown_table
from apart import run_apart
from quality_picture import draw

TARGET, SHARES, FIRST = "hf", (1.0, 0.98, 0.95), 20
SCORES = ("visual_exact_match", "exact_match")


def starting(seconds: list[float]) -> float:
    """Return what the first steps took over as many usual ones."""
    return sum(seconds[:FIRST]) - len(seconds[:FIRST]) * statistics.median(seconds)


def until(points: list[dict[str, Any]], key: str, target: float) -> float | None:
    """Return the seconds of steps at the first point that is as good as the target, or None."""
    good = (point for point in points if (point[key] <= target if key == "loss" else point[key] >= target))
    return next((float(point["at_s"]) for point in good), None)


def told(line: dict[str, Any], target: dict[str, Any] | None, score: str) -> list[str]:
    """Return the cells of an arm's row."""
    points, seconds = line["points"], line["seconds"]
    cells = [f"{points[-1]['at_s']:.1f}", f"{1e3 * statistics.median(seconds):.0f}", f"{starting(seconds):.1f}"]
    cells += [
        f"{line['beside_s']:.0f}",
        str(line["held_out"]),
        f"{100 * points[-1][score]:.1f}",
        f"{points[-1]['loss']:.4f}",
    ]
    if target is None:
        return [*cells, *[f"{TARGET} is missing"] * (len(SHARES) + 1)]
    end = target["points"][-1]
    wanted = [(score, share * end[score]) for share in SHARES] + [("loss", end["loss"])]
    found, start = [until(points, key, value) for key, value in wanted], starting(seconds)
    return cells + ["not reached" if one is None else f"{one:.1f} ({one - start:.1f})" for one in found]


def table(lines: list[dict[str, Any]]) -> str:
    """Return the arms as a Markdown table."""
    names = ["all steps, s", "a step, ms", "starting, s", "beside, s", "held out", "score, %", "loss"]
    names += [*(f"until {100 * share:g}% of the score" for share in SHARES), "until the loss"]
    done, target, score = ended(lines)
    rows = []
    for line in lines:
        failed = [line.get("error", "").replace("|", "/"), *[""] * (len(names) - 1)]
        rows.append([line["name"], *(told(line, target, score) if line in done else failed)])
    return markdown_table.table(["arm", *names], rows)


def ended(lines: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any] | None, str]:
    """Return the arms that ended, the one that the others are held against if it did, and the score's key."""
    done = [line for line in lines if "points" in line]
    target = next((line for line in done if line["name"] == TARGET), None)
    return done, target, next((key for key in SCORES if done and key in done[0]["points"][-1]), SCORES[-1])


def latest(file: Path) -> list[dict[str, Any]]:
    """Return the last line of every arm that the file has."""
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    return list({line["name"]: line for line in found}.values())


def main() -> None:
    """Train the arms, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, or builtin")
    parser.add_argument("data", type=Path, help="a folder of packs, each with train.json")
    parser.add_argument("--arms", nargs="+", help="some of the arms; all of them where none is given")
    parser.add_argument("--out", type=Path, required=True, help="a file of lines, which are added to")
    parser.add_argument("--picture", type=Path, help="an SVG file of all arms that --out has")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--every", type=int, default=20, help="steps from one measuring to the next")
    parser.add_argument("--held", default="2%", help="share of the samples that is held out")
    parser.add_argument("--samples", type=int, help="of how many samples at most")
    parser.add_argument("--workers", type=int, default=8, help="processes that encode samples")
    parser.add_argument("--limit", type=float, default=570, help="seconds for all arms together")
    parser.add_argument("--tiny", action="store_true", help="a few steps of few samples, to test the machinery")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.tiny:
        args.steps, args.batch, args.every, args.held, args.samples, args.workers = 4, 4, 2, "20%", 40, 0
    from quality_arms import ARMS, trained

    if unknown := set(args.arms or ()) - set(ARMS):
        parser.error(f"no such arm: {', '.join(sorted(unknown))}; there are {', '.join(ARMS)}")
    if args.one:
        print(json.dumps(trained(args.one, args)))
        return
    begin, options = time.perf_counter(), sys.argv[1:]
    for name in args.arms or ARMS:
        left = args.limit - (time.perf_counter() - begin)
        line = run_apart(name, [__file__, *options, "--one", name], left)
        print(json.dumps({key: value for key, value in line.items() if key != "seconds"}), flush=True)
        with args.out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
    found = latest(args.out)
    print(table(found))
    done, target, score = ended(found)
    if args.picture and done:
        args.picture.write_text(draw(done, score, target and target["points"][-1][score]), encoding="utf-8")


if __name__ == "__main__":
    main()
