"""Attack striate: faults, damaged files and bad inputs of every kind; print how the cases came out, kind by kind.

    python scripts/attack.py                                  # some of each kind, about a quarter of an hour on 2 cores
    python scripts/attack.py --n 0                            # every case there is
    python scripts/attack.py --kinds pictures "model cards"   # these kinds only

A case is clean where the result is right, or one error says what was given, what is allowed and what to do next; weak
where an error lacks one of these; failed where there is a traceback, a hang, lost work or a wrong result in silence.
The figures go to results/reliability.json where all kinds were asked for, the cases that are not clean to the terminal.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "attack")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from attack_cases import all_cases, sampled  # noqa: E402
from attack_engine import CLEAN, FAILED, WEAK, Result, run_cases, table  # noqa: E402
from attack_ground import build, preload  # noqa: E402

RESULTS = ROOT / "results" / "reliability.json"


def main() -> None:
    """Run the cases; exit with 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", help="kinds of cases; all of them when none is named")
    parser.add_argument("--seed", type=int, default=0, help="which cases are drawn")
    parser.add_argument("--n", type=int, default=66, help="the most cases of a kind; 0: all")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--out", type=Path, help="write the figures there")
    asked = parser.parse_args()
    cases = all_cases()
    kinds = list(dict.fromkeys(case.kind for case in cases))
    unknown = sorted(set(asked.kinds or []) - set(kinds))
    if unknown:
        parser.error(f"no kind {unknown[0]!r}; there are {', '.join(kinds)}")
    chosen = sampled([case for case in cases if case.kind in (asked.kinds or kinds)], asked.n, asked.seed)
    print(f"{len(chosen)} of {len(cases)} cases", flush=True)
    begin = time.perf_counter()
    preload()
    results = run_cases(chosen, build, workers=asked.workers, tell=_tell)
    seconds = time.perf_counter() - begin
    counts = table(results)
    _print(counts)
    print(f"{seconds:.0f} s")
    out = asked.out or (None if asked.kinds else RESULTS)
    if out:
        _write(out, counts, results, {"seed": asked.seed, "n": asked.n, "seconds": round(seconds)})
    sys.exit(any(result.state == FAILED for result in results))


def _tell(result: Result) -> None:
    if result.state != CLEAN:
        print(f"{result.state} | {result.kind} | {result.name} | {result.seconds} | {result.why}", flush=True)


def _print(counts: dict[str, dict[str, int]]) -> None:
    columns = ("tried", CLEAN, WEAK, FAILED)
    print(f"\n{'kind':<28}" + "".join(f"{name:>8}" for name in columns))
    total = {name: sum(row[name] for row in counts.values()) for name in columns}
    for kind, row in {**counts, "all": total}.items():
        print(f"{kind:<28}" + "".join(f"{row[name]:>8}" for name in columns))


def _write(out: Path, counts: dict[str, dict[str, int]], results: list[Result], how: dict[str, int]) -> None:
    rest = [
        {"kind": result.kind, "case": result.name, "state": result.state, "why": result.why[:300]}
        for result in results
        if result.state != CLEAN
    ]
    out.write_text(json.dumps({**how, "kinds": counts, "not_clean": rest}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
