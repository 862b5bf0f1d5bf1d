#!/usr/bin/env python
"""Measure how often 95% intervals cover a known truth, and how often the gate is sure and wrong, on simulated answers.

    python benchmarks/interval_coverage.py --out results/interval-coverage.jsonl
    python benchmarks/interval_coverage.py --only rare thirty-tasks --repetitions 4000
    python benchmarks/interval_coverage.py --floor --out results/floor-coverage.jsonl

Every setting draws two models' scores whose true means are known, compares them as `striate evaluate` does, and counts
how often the interval of the score, of the difference and of the retention holds the truth, among the repetitions that
gave an interval; and how often, of all repetitions, the gate would have called a pass or a failure sure against the
truth. The Monte Carlo error of a share p is sqrt(p (1 - p) / repetitions): 0.5 points at 95% and 2,000. One core.

With `--floor` the same of the retention above a floor of half the baseline's score, drawn apart from both models'
answers: the least that it can have in common with them.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from striate.tasks.scoring.above_floor import above_floor
from striate.tasks.scoring.compare import compare_pairs, nats_interval
from striate.tasks.scoring.intervals import share_interval
from striate.tasks.scoring.paired_scores import Paired
from striate.tasks.scoring.picture_sample import PictureSample

Floats = NDArray[np.float64]
Generator = np.random.Generator
KEY = ("p", "t", "exact", "visual")
NEAR = 1e-9
# So few answers change there that coverage jumps with their count: above 97.5%, or far below 95%.
FEW_CHANGES = ("rare", "rare-lost", "low-20", "low-60")


@dataclass(frozen=True)
class Draw:
    """One simulated test: a pair a task, and the true means of baseline and other."""

    pairs: list[Paired]
    baseline: float
    other: float
    metric: str = "exact"


Setting = Callable[[Generator], Draw]


def changed(generator: Generator, sizes: Sequence[int], share: float, difference: float, together: float = 0.0) -> Draw:
    """Right and wrong answers of which `share` change; `sizes` counts each picture's questions, alike by `together`."""
    picture = np.repeat(np.arange(len(sizes)), sizes)
    right, lost = 0.6, (share - difference) / 2
    draw, steady = (_correlated(generator, picture, together) for _ in range(2))
    gained = share - lost
    baseline = np.where(draw < gained, 0.0, np.where(draw < share, 1.0, steady < right))
    other = np.where(draw < gained, 1.0, np.where(draw < share, 0.0, steady < right))
    truth = lost + (1 - share) * right
    return Draw([Paired.of(baseline, other, None, [f"p{place}" for place in picture])], truth, truth + difference)


def kept(generator: Generator, tasks: Sequence[tuple[int, float]], keep: float, otherwise: float) -> Draw:
    """Tasks of so many items and such a score; the other model keeps an answer, or is right in `otherwise` of cases."""
    pairs = []
    for items, right in tasks:
        baseline = (generator.random(items) < right) * 1.0
        again = (generator.random(items) < otherwise) * 1.0
        pairs.append(Paired.of(baseline, np.where(generator.random(items) < keep, baseline, again)))
    mean = float(np.mean([right for _, right in tasks]))
    return Draw(pairs, mean, keep * mean + (1 - keep) * otherwise)


def same_pictures(generator: Generator, pictures: int, tasks: int, lost: float, gained: float) -> Draw:
    """Several tasks that each ask one question about every picture; a hard picture is hard in all of them."""
    names, place = [f"p{number}" for number in range(pictures)], np.tile(np.arange(pictures), tasks)
    shares = np.linspace(0.55, 0.85, tasks)
    first, change = (_correlated(generator, place, 0.7).reshape(tasks, pictures) for _ in range(2))
    baseline = (first < shares[:, None]) * 1.0
    other = np.where(baseline == 1, change >= lost, change < gained) * 1.0
    pairs = [Paired.of(one, two, None, names) for one, two in zip(baseline, other, strict=True)]
    mean = float(shares.mean())
    return Draw(pairs, mean, mean * (1 - lost) + (1 - mean) * gained)


def graded(generator: Generator, items: int, width: float) -> Draw:
    """Scores between 0 and 1, of which 30% change and gain 0.05 on average."""
    baseline = generator.beta(0.6 / width, 0.4 / width, items)
    again = generator.beta((0.6 + 0.05 / 0.3) / width, (0.4 - 0.05 / 0.3) / width, items)
    return Draw([Paired.of(baseline, np.where(generator.random(items) < 0.7, baseline, again))], 0.6, 0.65)


def nats(generator: Generator, texts: int) -> Draw:
    """Texts of unequal lengths and skewed nats a token, that become a little less likely."""
    weights = generator.integers(20, 400, texts) * 1.0
    baseline = 2 + generator.lognormal(0, 0.6, texts)
    other = baseline + 0.05 + 0.1 * (generator.lognormal(0, 0.6, texts) - math.exp(0.18))
    mean = 2 + math.exp(0.18)
    return Draw([Paired.of(baseline, other, weights)], mean, mean + 0.05, "perplexity")


def _correlated(generator: Generator, picture: NDArray[Any], share: float) -> Floats:
    """Return uniform draws; those of one picture are correlated, by `share` on the normal scale."""
    common = generator.normal(size=picture.max() + 1)[picture]
    values = math.sqrt(share) * common + math.sqrt(1 - share) * generator.normal(size=len(picture))
    return np.vectorize(NormalDist().cdf)(values) if share else generator.random(len(picture))


SETTINGS: dict[str, tuple[str, Setting]] = {
    "changed-20": ("20 items, 30% change", lambda g: changed(g, [1] * 20, 0.3, 0.1)),
    "changed-50": ("50 items, 20% change", lambda g: changed(g, [1] * 50, 0.2, 0.1)),
    "changed-100": ("100 items, 30% change", lambda g: changed(g, [1] * 100, 0.3, 0.1)),
    "changed-300": ("300 items, 10% change", lambda g: changed(g, [1] * 300, 0.1, 0.05)),
    "no-difference": ("300 items, 20% change, as many each way", lambda g: changed(g, [1] * 300, 0.2, 0.0)),
    "three-a-picture": ("20 pictures with 3 questions", lambda g: changed(g, [3] * 20, 0.3, 0.1, 0.5)),
    "five-a-picture": ("60 pictures with 5 questions", lambda g: changed(g, [5] * 60, 0.2, 0.05, 0.5)),
    "ten-a-picture": ("30 pictures with 10 questions", lambda g: changed(g, [10] * 30, 0.3, 0.1, 0.5)),
    "uneven-pictures": ("15 pictures with 1 to 15 questions", lambda g: changed(g, range(1, 16), 0.3, 0.1, 0.5)),
    "half-right": ("150 items at 50%", lambda g: kept(g, [(150, 0.5)], 0.9, 0.3)),
    "mostly-right": ("150 items at 80%", lambda g: kept(g, [(150, 0.8)], 0.9, 0.3)),
    "five-tasks": ("5 tasks of 40 items", lambda g: kept(g, [(40, 0.4 + 0.1 * k) for k in range(5)], 0.85, 0.3)),
    "uneven-tasks": (
        "tasks of 10, 30, 100, 300 items",
        lambda g: kept(g, [(10, 0.4), (30, 0.5), (100, 0.6), (300, 0.7)], 0.8, 0.4),
    ),
    "graded-40": ("40 graded scores", lambda g: graded(g, 40, 0.5)),
    "graded-200": ("200 graded scores, mostly near 0 or 1", lambda g: graded(g, 200, 2.0)),
    "nats-30": ("30 texts, nats a token", lambda g: nats(g, 30)),
    "nats-200": ("200 texts, nats a token", lambda g: nats(g, 200)),
    "same-pictures-12": ("4 tasks on the same 12 pictures", lambda g: same_pictures(g, 12, 4, 0.3, 0.2)),
    "same-pictures-20": ("5 tasks on the same 20 pictures", lambda g: same_pictures(g, 20, 5, 0.12, 0.06)),
    "same-pictures-40": ("5 tasks on the same 40 pictures", lambda g: same_pictures(g, 40, 5, 0.12, 0.06)),
    "same-pictures-100": ("8 tasks on the same 100 pictures", lambda g: same_pictures(g, 100, 8, 0.12, 0.06)),
    "rare": ("100 items, 2% change, as many each way", lambda g: changed(g, [1] * 100, 0.02, 0.0)),
    "rare-lost": ("100 items, 2% change, all lost", lambda g: changed(g, [1] * 100, 0.02, -0.02)),
    "rare-300": ("300 items, 2% change, 1.5% lost", lambda g: changed(g, [1] * 300, 0.02, -0.01)),
    "rare-five": ("100 items, 5% change, 4% lost", lambda g: changed(g, [1] * 100, 0.05, -0.03)),
    "low-20": ("20 items at 10%", lambda g: kept(g, [(20, 0.1)], 0.8, 0.1)),
    "low-60": ("60 items at 10%", lambda g: kept(g, [(60, 0.1)], 0.8, 0.1)),
    "low-200": ("200 items at 10%", lambda g: kept(g, [(200, 0.1)], 0.6, 0.1)),
    "thirty-tasks": ("30 tasks of one item", lambda g: kept(g, [(1, 0.4 + k / 72) for k in range(30)], 0.6, 0.5)),
    "thirty-alike": ("30 tasks of one item, alike", lambda g: kept(g, [(1, 0.6)] * 30, 0.6, 0.5)),
    "thirty-of-two": ("30 tasks of two items", lambda g: kept(g, [(2, 0.4 + k / 72) for k in range(30)], 0.7, 0.4)),
    "two-pictures": ("2 pictures with 50 questions", lambda g: changed(g, [50] * 2, 0.3, 0.1, 0.5)),
    "eight-pictures": ("8 pictures with 8 questions", lambda g: changed(g, [8] * 8, 0.3, 0.1, 0.5)),
}

FLOOR_SETTINGS = ("changed-50", "changed-100", "changed-300", "five-a-picture", "ten-a-picture", "five-tasks", "rare")


def above_floor_measured(name: str, repetitions: int, seed: int) -> dict[str, Any]:
    """Return how often the interval of the retention above the floor held the truth in one setting."""
    told, setting = SETTINGS[name]
    generator, counts = np.random.default_rng([seed, 1, *name.encode()]), np.zeros(4, dtype=int)
    for _ in range(repetitions):
        draw = setting(generator)
        floor = draw.baseline / 2
        blind = [(generator.random(len(pair.baseline)) < floor) * 1.0 for pair in draw.pairs]
        found = above_floor(draw.pairs, blind).interval
        counts += _fate(found.low, found.high, 100 * (draw.other - floor) / (draw.baseline - floor))
    given, held, above, below = (int(count) for count in counts)
    return {
        "setting": name,
        "what": told,
        "repetitions": repetitions,
        "given": given / repetitions,
        "coverage": held / given if given else None,
        "above_truth": above / repetitions,
        "below_truth": below / repetitions,
    }


def measured(name: str, repetitions: int, bootstrap: int, seed: int) -> dict[str, Any]:
    """Return the coverage of one setting's three intervals, and the shares of sure and wrong verdicts of a gate."""
    told, setting = SETTINGS[name]
    generator = np.random.default_rng([seed, *name.encode()])
    counts = {what: np.zeros(4, dtype=int) for what in ("score", "difference", "retention")}
    items = pictures = 0
    for repetition in range(repetitions):
        draw = setting(generator)
        plain = [Paired(pair.other, pair.other, pair.weights, pair.pictures) for pair in draw.pairs]
        key = KEY[0], KEY[1], draw.metric, KEY[3]
        row = compare_pairs(("other", "baseline"), key, draw.pairs, bootstrap, repetition)
        bounded = draw.metric != "perplexity"
        score = share_interval(PictureSample.of(plain)) if bounded else nats_interval(plain[0], bootstrap, repetition)
        difference = draw.other - draw.baseline
        ratio = draw.other / draw.baseline if bounded else math.exp(-difference)
        counts["score"] += _fate(score.low, score.high, draw.other)
        counts["difference"] += _fate(row.low, row.high, difference)
        counts["retention"] += _fate(row.retention_low, row.retention_high, 100 * ratio)
        items, pictures = row.n, row.clusters
    line: dict[str, Any] = {"setting": name, "what": told, "items": items, "pictures": pictures}
    line |= {"repetitions": repetitions}
    for what, (given, held, above, below) in counts.items():
        cover = held / given if given else None
        error = None if cover is None else math.sqrt(cover * (1 - cover) / given)
        line[what] = {"given": given / repetitions, "coverage": cover, "monte_carlo_error": error}
        line[what] |= {"above_truth": above / repetitions, "below_truth": below / repetitions}
    line["pass_sure_and_wrong"] = line["retention"]["above_truth"]
    line["failure_sure_and_wrong"] = line["retention"]["below_truth"]
    return line


def _fate(low: float | None, high: float | None, truth: float) -> NDArray[np.intp]:
    """Return whether there is an interval, whether it holds the truth, lies above it, or below it."""
    if low is None or high is None:
        return np.zeros(4, dtype=int)
    above, below = low > truth + NEAR, high < truth - NEAR
    return np.array([True, not above and not below, above, below], dtype=int)


def table_row(line: dict[str, Any]) -> str:
    """Return one setting as a row of the table in docs/evaluation.md."""
    cells = [f"`{line['setting']}`", line["what"], str(line["items"]), str(line["pictures"])]
    for what in ("score", "difference", "retention"):
        found = line[what]
        if found["coverage"] is None:
            cells.append("none given")
            continue
        share = "" if found["given"] > 0.995 else f" of the {100 * found['given']:.0f}% given"
        cells.append(f"{100 * found['coverage']:.1f}%{share}")
    cells.append(f"{100 * line['pass_sure_and_wrong']:.1f}%, {100 * line['failure_sure_and_wrong']:.1f}%")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run the settings, print a row each, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--bootstrap", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=SETTINGS)
    parser.add_argument("--floor", action="store_true", help="only the retention above a floor")
    args = parser.parse_args()
    lines = []
    for name in args.only or (FLOOR_SETTINGS if args.floor else SETTINGS):
        if args.floor:
            lines.append(above_floor_measured(name, args.repetitions, args.seed))
            print(json.dumps(lines[-1]), flush=True)
            continue
        lines.append(measured(name, args.repetitions, args.bootstrap, args.seed))
        print(table_row(lines[-1]), flush=True)
    if args.out:
        args.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
