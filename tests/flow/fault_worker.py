"""Meets faults at the file operations of a run of the whole flow, and goes on after each.

Run by test_fault_injection.py, and by hand at length: `python fault_worker.py FOLDER --faults kill torn --every 1`.
Torch is imported once; every run is a forked child. Prints a line for each fault that does not end as it should:
with one clear error where the disk is full, and with the files of an uninterrupted run after the same call again.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import build_loaded, build_pack
from fault_kit import FAULTS, KILLED, Fault, FileOperations, faulty, forked, operations_of

from striate.config import RunConfig, parse_config
from striate.pipeline import Flow
from striate.stages import analyze, evaluate, train  # noqa: F401  so that children find all imported

# What tells how long something took, or how much memory.
MEASURED = re.compile(r'"(seconds|peak_memory_gib|finished|command|digest|[a-z_]*per_second)": ?("[^"]*"|[-+.\de]+)')
# How many were asked in this session, and how many before.
ASKED = re.compile(r'"asking": ?\{[^{}]*\}')
TIMED = re.compile(rb'"((?:train|prune|eval/\w+)\.json|train_log\.jsonl)": "\w+"')


def quickest_config(root: Path) -> RunConfig:
    """Return the config of the cheapest run that passes every stage, after writing the model and pack that it reads."""
    if not (root / "model").exists():
        loaded = build_loaded()
        loaded.model.save_pretrained(root / "model")
        loaded.processor.save_pretrained(root / "model")
        build_pack(root / "pack", pictures=4)
    raw: dict[str, Any] = {
        "model": {"path": str(root / "model")},
        "data": {"train": [str(root / "pack")]},
        "analyze": {"samples": 2, "scorers": ["modality-block-influence"]},
        "select": {"region": "uniform:50%"},
        "train": {"batch_size": 2, "max_steps": 2, "max_length": 128, "save_steps": 1, "lora": {"r": 2, "alpha": 4}},
        "prune": {"remove": 1},
        "evaluate": {"packs": [str(root / "pack")], "limit": 2, "max_new_tokens": 2, "bootstrap": 100},
        "machine": {"micro_batch": 2, "device": "cpu"},
    }
    return parse_config(raw)


def contents(folder: Path) -> dict[str, Any]:
    """Return what every file of a run folder holds, without what was measured."""
    return {
        str(path.relative_to(folder)): _unmeasured(path) if path.is_file() else "a folder"
        for path in sorted(folder.rglob("*"))
    }


def _unmeasured(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name == "run.json":
        content = TIMED.sub(rb'"\1": ""', content)
    if path.suffix in (".json", ".jsonl"):
        return ASKED.sub("", MEASURED.sub(r'"\1": 0', content.decode())).encode()
    # The page shows what was measured; that the same artifacts give the same page is tested elsewhere.
    return content.rpartition(b"</html>")[1] if path.suffix == ".html" else content


def problems(root: Path, config: RunConfig, whole: dict[str, Any], at: int, fault: Fault) -> Iterator[str]:
    """Yield what is wrong after the fault at operation `at`, and after the same run once more."""
    out, log = root / "run", root / "run.log"
    for left in root.glob("run*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    run = partial(_everything, config, out)
    code = faulty(run, FileOperations(out, at, fault), log)
    allowed = {"kill": {KILLED}, "torn": {KILLED}, "full": {0, 1}, "interrupt": {0, 130}}[fault]
    if code not in allowed:
        yield f"exit code {code}: {_last(log)}"
    if code == 1 and not re.search(r"^striate\.errors\.\w+Error: ", log.read_text(encoding="utf-8"), re.MULTILINE):
        yield f"no error of striate: {_last(log)}"
    log.unlink(missing_ok=True)
    if code := forked(run, log):
        yield f"going on ends with {code}: {_last(log)}"
        return
    found = contents(out)
    yield from (f"left behind: {name}" for name in found.keys() - whole.keys())
    yield from (f"missing: {name}" for name in whole.keys() - found.keys())
    yield from (f"other bytes: {name}" for name in whole.keys() & found.keys() if whole[name] != found[name])


def _everything(config: RunConfig, out: Path) -> None:
    Flow(config, out).everything()


def _last(log: Path) -> str:
    return log.read_text(encoding="utf-8").strip().splitlines()[-1] if log.exists() else "no log"


def main() -> int:
    """Go through the operations; return 1 where one did not end as it should."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--every", type=int, default=1, help="take one operation of so many")
    parser.add_argument("--first", type=int, default=0, help="the operation to begin with")
    parser.add_argument("--only", default="", help="only operations whose line matches this regular expression")
    asked = parser.parse_args()
    root = asked.folder.absolute()
    root.mkdir(parents=True, exist_ok=True)
    config = quickest_config(root)
    shutil.rmtree(root / "run", ignore_errors=True)
    operations = operations_of(partial(_everything, config, root / "run"), root / "run", root / "run.log")
    whole = contents(root / "run")
    chosen = [at for at in range(asked.first, len(operations), asked.every) if re.search(asked.only, operations[at])]
    tried = wrong = 0
    for fault in asked.faults:
        for at in chosen:
            found = sorted(problems(root, config, whole, at, fault))
            tried, wrong = tried + 1, wrong + bool(found)
            if found:
                print(
                    json.dumps({"fault": fault, "at": at, "operation": operations[at], "problems": found}), flush=True
                )
    print(json.dumps({"operations": len(operations), "tried": tried, "wrong": wrong}), flush=True)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
