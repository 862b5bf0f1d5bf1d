#!/usr/bin/env python3
"""Make the data folder of the studies in one go: rendered pictures, plain text, and what the model writes itself.

    python benchmarks/study_data.py MODEL PACKS OUT --pictures 20000 --tests 150 --held 30 --workers 15

PACKS is a folder of packs in LLaVA form: `text_train` (training data without pictures, of which 3,500 conversations
train and 100 are held out) and the tests `text_*` of `--texts`, each cut to so many items a task. OUT gets the packs of
`rendered_packs.py`, these, and `stories/` of `own_stories.py`. `--real` names packs with pictures of which as many
training samples and test items are taken along, in folders `real-NAME`.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

TEXTS = ("text_arc_easy", "text_piqa", "text_arithmetic", "text_lambada")
HERE = Path(__file__).parent


def texts(packs: Path, out: Path, train: int, held: int, items: int) -> None:
    """Write the plain text to train on, that held out, and the tests without pictures."""
    rows = json.loads((packs / "text_train" / "train.json").read_text())
    random.Random(0).shuffle(rows)
    folder = out / "text_train"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.json").write_text(json.dumps(rows[:train]))
    (folder / "held_out.json").write_text(json.dumps(rows[train : train + held]))
    for name in TEXTS:
        (out / name).mkdir(exist_ok=True)
        lines = (packs / name / "test.jsonl").read_text().splitlines()
        (out / name / "test.jsonl").write_text("\n".join(first_of_each(lines, items)) + "\n")


def first_of_each(lines: list[str], items: int) -> list[str]:
    """Return the first so many test items of each task and metric."""
    seen: Counter[tuple[str, str]] = Counter()
    kept = []
    for line in lines:
        item = json.loads(line)
        seen[item["task"], item["metric"]] += 1
        if seen[item["task"], item["metric"]] <= items:
            kept.append(line)
    return kept


def real(source: Path, folder: Path, train: int, held: int, items: int) -> None:
    """Write a part of a pack with pictures; those of held-out samples are not trained on."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    rows: list[dict[str, Any]] = json.loads((source / "train.json").read_text())
    pictures = sorted({row["image"] for row in rows})
    random.Random(0).shuffle(pictures)
    aside = set(pictures[:held])
    rest = [row for row in rows if row["image"] not in aside]
    chosen = sorted(random.Random(0).sample(range(len(rest)), min(train, len(rest))))
    (folder / "train.json").write_text(json.dumps([rest[index] for index in chosen]))
    one_each = {row["image"]: row for row in rows if row["image"] in aside}
    (folder / "held_out.json").write_text(json.dumps(list(one_each.values())))
    lines = (source / "test.jsonl").read_text().splitlines()
    random.Random(0).shuffle(lines)
    (folder / "test.jsonl").write_text("\n".join(first_of_each(lines, items)) + "\n")


def main() -> None:
    """Write the packs; pictures are rendered while the model writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("packs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures", default="20000")
    parser.add_argument("--tests", default="150", help="of each ability")
    parser.add_argument("--held", default="30", help="the same, held out")
    parser.add_argument("--workers", default="2", help="processes that render")
    parser.add_argument("--stories", type=int, default=4100, help="texts that the model writes, 100 of them held out")
    parser.add_argument("--texts", type=int, default=200, help="test items a task without pictures")
    parser.add_argument("--real", nargs="*", default=[], help="packs with pictures")
    parser.add_argument("--real-train", type=int, default=2200, help="training samples of each")
    parser.add_argument("--real-tests", type=int, default=40, help="test items a task of these")
    args = parser.parse_args()
    stories = [args.model, args.out / "stories", "--count", args.stories, "--held", min(100, args.stories // 4)]
    # Rendered into a folder of its own, which must be new.
    rendered = args.out.with_name(f"{args.out.name}-rendered")
    scenes = [args.model, rendered, "--pictures", args.pictures, "--tests", args.tests, "--held", args.held]
    running = [
        subprocess.Popen([sys.executable, str(HERE / script), *map(str, arguments)])
        for script, arguments in (
            ("own_stories.py", stories),
            ("rendered_packs.py", [*scenes, "--workers", args.workers]),
        )
    ]
    texts(args.packs, args.out, 3500, 100, args.texts)
    for name in args.real:
        real(args.packs / name, args.out / f"real-{name}", args.real_train, 25, args.real_tests)
    if failed := max(process.wait() for process in running):
        sys.exit(failed)
    for folder in rendered.iterdir():
        folder.rename(args.out / folder.name)
    rendered.rmdir()


if __name__ == "__main__":
    main()
