#!/usr/bin/env python3
"""Turn the folder of a region study's sweep into the verdicts that docs/study.md settles beforehand.

    python benchmarks/study_verdicts.py SWEEP --out verdicts

SWEEP is what `striate sweep configs/study/regions.yaml --out SWEEP` made, finished or not, without its checkpoints. The
tables are printed as Markdown; `--out` gets `verdicts.json`, `verdicts.svg` and `runs.jsonl`, a line a finished run.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from study_arms import Study
from study_figures import Figures
from study_picture import draw
from study_runs import runs_told
from study_tables import markdown

from striate.errors import StriateError
from striate.storage.atomic import write_text


def main() -> int:
    """Print the tables, and write what `--out` asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sweep", type=Path, help="the sweep's folder")
    parser.add_argument("--out", type=Path, help="where verdicts.json, verdicts.svg and runs.jsonl go")
    args = parser.parse_args()
    try:
        study = Study(args.sweep)
        told, runs = Figures(study).told(), runs_told(study)
    except StriateError as error:
        print(error, file=sys.stderr)
        return 1
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write_text(args.out / "verdicts.json", json.dumps(told, indent=1) + "\n")
        write_text(args.out / "verdicts.svg", draw(told))
        write_text(args.out / "runs.jsonl", "".join(json.dumps(run) + "\n" for run in runs))
    print(markdown(told), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
