#!/usr/bin/env python3
"""Count what `datasets` and TRL take to make conversations ready, beside striate: CPU seconds, memory, samples.

    python benchmarks/beside_trl.py striate DATA/train.jsonl MODEL
    python benchmarks/beside_trl.py trl DATA/train.jsonl MODEL

Each in a process of its own, with an empty cache. `trl`: `datasets` reads the file, `map` brings the conversations into
TRL's form with the pictures' paths, and TRL's own collator for vision-language models encodes samples, with labels of
all tokens. `striate`: the samples are checked and stored, and the collator encodes them with labels of the answers.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENCODED, TOGETHER = 400, 8
ROLES = {"human": "user", "gpt": "assistant"}


def used() -> float:
    """Return the CPU seconds of this process and those it waited for."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)


def held() -> float:
    """Return the GiB that this process holds by itself."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**20 for line in lines if line.startswith("RssAnon"))


def striate_ready(data: Path, model: str) -> tuple[Any, Callable[[list[int]], Any]]:
    """Return the samples and what encodes those of some numbers."""
    from striate.data.collate import Collator
    from striate.data.reading import read_samples
    from striate.models.io.load import load_processor

    collator = Collator(load_processor(model), 2048, True)
    samples = read_samples(data)
    return samples, lambda rows: collator([samples[row] for row in rows])


def trl_ready(data: Path, model: str) -> tuple[Any, Callable[[list[int]], Any]]:
    """Return the data set and what encodes its rows of some numbers."""
    from datasets import Image, List, load_dataset
    from transformers import AutoProcessor
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    images = data.parent / "images"

    def chat(row: dict[str, Any]) -> dict[str, Any]:
        turns = [
            {"role": ROLES[turn["from"]], "content": turn["value"].replace("<image>\n", "")}
            for turn in row["conversations"]
        ]
        return {"messages": turns, "images": [str(images / row["image"])] if row["image"] else []}

    rows = load_dataset("json", data_files=str(data), split="train")
    rows = rows.map(chat, remove_columns=["conversations", "image", "id"]).cast_column("images", List(Image()))
    collator = DataCollatorForVisionLanguageModeling(AutoProcessor.from_pretrained(model), max_length=2048)
    return rows, lambda chosen: collator([rows[row] for row in chosen])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("striate", "trl"))
    parser.add_argument("data", type=Path)
    parser.add_argument("model")
    given = parser.parse_args()
    begin, before = time.perf_counter(), used()
    samples, encode = (striate_ready if given.what == "striate" else trl_ready)(given.data, given.model)
    ready, wall, memory = used() - before, time.perf_counter() - begin, held()
    step = max(1, len(samples) // ENCODED)
    chosen = list(range(0, len(samples), step))[:ENCODED]
    encode(chosen[:TOGETHER])
    before = used()
    for first in range(0, len(chosen), TOGETHER):
        encode(chosen[first : first + TOGETHER])
    rate = len(chosen) / (used() - before)
    found = {"ready_cpu": ready, "ready_wall": wall, "gib": memory, "samples_per_cpu_second": rate}
    print(
        json.dumps({"what": given.what, "samples": len(samples)} | {key: round(one, 2) for key, one in found.items()})
    )
