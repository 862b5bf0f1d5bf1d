#!/usr/bin/env python3
"""Ask one LVLM the same multiple-choice items with striate and with the lm-evaluation-harness; compare item by item.

The harness reads the pack's items from a task file written here, tokenizes, batches and scores with its own code.
Compared are the log-probability of every choice, and on every item whether the likeliest choice by sum (the harness's
`acc`) and by sum a character (`acc_norm`) is the right one.

    python benchmarks/lm_eval_agreement.py MODEL PACK --items 300

Needs the extra lm-eval. Prints one JSON line; exits 1 if an item is scored differently.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
import yaml

from striate.harness.lm_eval import run
from striate.harness.suites import Suite, require
from striate.models.io.load import Loaded, load_model
from striate.tasks.inference.ask import ask
from striate.tasks.inference.prompts import plain_context
from striate.tasks.metrics.choices.choice_logprob import score_choice_logprob
from striate.tasks.packs.items import Compare, Item, Reply
from striate.tasks.packs.reader import read_pack

TASK = "agreement"
MEASURES: dict[str, Compare] = {"acc": "sum", "acc_norm": "characters"}


def main() -> int:
    """Print how far the two agree; return 1 if an item is scored differently, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an LVLM: folder or hub id")
    parser.add_argument("pack", type=Path, help="a pack with choice_logprob items")
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    items = [item for item in read_pack(options.pack).items if item.metric == "choice_logprob"][: options.items]
    loaded = load_model(options.model, device=options.device, dtype=options.dtype, merge=True)
    begin = time.perf_counter()
    replies = ask(loaded.model, loaded.processor, items).replies
    ours = time.perf_counter()
    samples = _harness(loaded, items)
    theirs = time.perf_counter()
    facts = {
        "model": Path(options.model).name,
        "pack": options.pack.name,
        "items": len(items),
        "device": str(loaded.model.device),
        "dtype": options.dtype,
        "torch": torch.__version__,
        "lm_eval": version("lm-eval"),
        "striate_seconds": round(ours - begin, 1),
        "lm_eval_seconds": round(theirs - ours, 1),
    }
    found = _compare(items, replies, samples)
    print(json.dumps(facts | found))
    return int(bool(found["differ"]))


def _harness(loaded: Loaded, items: list[Item]) -> list[dict[str, object]]:
    """Return the harness's record of every item, in order."""
    suite = Suite("lm-eval", (TASK,))
    require(suite)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = folder / "rows.jsonl"
        rows.write_text(
            "".join(
                json.dumps({"context": plain_context(item), "choices": item.choices, "gold": item.answer_index}) + "\n"
                for item in items
            )
        )
        (folder / "task.yaml").write_text(yaml.safe_dump(_task(rows)))
        outcome = run(replace(suite, folder=folder), loaded, limit=None, batch_size=None)
    return sorted(outcome.samples[TASK], key=lambda row: row["doc_id"])


def _task(rows: Path) -> dict[str, object]:
    """Return the task file: contexts and choices as striate joins them."""
    return {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in MEASURES],
    }


def _compare(items: list[Item], replies: list[Reply], samples: list[dict[str, object]]) -> dict[str, object]:
    """Return both accuracies, the items scored differently, and the largest difference of a log-probability."""
    found: dict[str, object] = {}
    differ = []
    for measure, compare in MEASURES.items():
        ours = [
            score_choice_logprob(replace(item, compare=compare), reply).score
            for item, reply in zip(items, replies, strict=True)
        ]
        theirs = [float(row[measure]) for row in samples]  # type: ignore[arg-type]
        found[f"striate_{measure}"] = sum(ours) / len(ours)
        found[f"lm_eval_{measure}"] = sum(theirs) / len(theirs)
        differ += [
            f"{measure}: {item.id}" for item, first, second in zip(items, ours, theirs, strict=True) if first != second
        ]
    gaps = [
        abs(first - float(second[0]))
        for reply, row in zip(replies, samples, strict=True)
        for first, second in zip(reply.logprobs, row["filtered_resps"], strict=True)  # type: ignore[call-overload]
    ]
    return found | {"differ": differ, "choices": len(gaps), "largest_gap_nats": max(gaps)}


if __name__ == "__main__":
    sys.exit(main())
