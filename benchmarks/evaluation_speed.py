#!/usr/bin/env python3
"""How much faster striate asks than one-sample-at-a-time `generate`, with the same answers.

Usage: python benchmarks/evaluation_speed.py MODEL PACK [PACK ...] [--items 200] [--repeats 3] [--device auto] [--out F]

Both sides are asked the same chat questions in `--dtype`, greedily, with the same end tokens and `--max-new-tokens`.
The reference loads, encodes and generates one item after the other, as evaluation scripts of LVLMs commonly do. Each
repeat times both sides on the same items, one right after the other, so that a busy machine slows both; seconds of all
processor cores together tell more than the clock where other programs run. Prints a table and one JSON line; the ratio
is that of the medians, its spread the lowest and highest ratio of a repeat.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from striate.data.collate import Collator
from striate.models.io.load import load_model
from striate.models.io.placing import on_device
from striate.models.structure.anatomy import unwrap
from striate.tasks.inference.ask import AskResult, ask
from striate.tasks.inference.generate import end_ids
from striate.tasks.inference.greedy_decode import before_end
from striate.tasks.inference.prompts import chat_sample
from striate.tasks.inference.text_tokens import context_limit
from striate.tasks.metrics import METRICS
from striate.tasks.packs.items import Item
from striate.tasks.packs.reader import read_pack, spread


def one_at_a_time(model: Any, processor: Any, items: Sequence[Item], max_new_tokens: int) -> list[str]:
    """Return the answers by `generate`, each item on its own."""
    collator = Collator(processor, context_limit(unwrap(model)) - max_new_tokens, train=False)
    ends = end_ids(model, processor)
    padding = processor.tokenizer.pad_token_id
    answers = []
    for item in items:
        inputs = on_device(model, collator.encode_prompts([chat_sample(item)]))
        with torch.inference_mode():
            output = model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=ends,
                pad_token_id=ends[0] if padding is None else padding,
            )
        new = output[0, inputs["input_ids"].shape[1] :].tolist()
        answers.append(processor.tokenizer.decode(before_end(new, set(ends)), skip_special_tokens=True))
    return answers


def timed(work: Callable[[], list[str]], device: torch.device) -> tuple[list[str], float, float]:
    """Return what `work` returns, and how many seconds it took: by the clock, and of all processor cores together."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin, begin_cores = time.perf_counter(), time.process_time()
    answers = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return answers, time.perf_counter() - begin, time.process_time() - begin_cores


def questions(packs: Sequence[Path], limit: int | None, whole: bool) -> list[Item]:
    """Return the chat questions of the packs; `whole` keeps a picture's questions together, else tasks are spread."""
    items = []
    for path in packs:
        asked = [item for item in read_pack(path).items if METRICS.get(item.metric).mode == "generate"]
        if limit is None or len(asked) <= limit:
            items += asked
        elif whole:
            pictures = list(dict.fromkeys(item.images for item in asked))
            step = max(1, len(pictures) * limit // len(asked))
            kept = set(pictures[:: max(1, len(pictures) // step)])
            items += [item for item in asked if item.images in kept][:limit]
        else:
            items += spread(asked, limit)
    return items


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an LVLM's folder")
    parser.add_argument("packs", nargs="+", type=Path, help="test packs; only questions with a generated answer count")
    parser.add_argument("--items", type=int, help="items of each pack; all of them if left out")
    parser.add_argument("--spread", action="store_true", help="spread the items over tasks and pictures")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", help="in bfloat16 rounding decides between near ties")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--rows", type=int, help="the most rows of a batch; what suits the device if left out")
    parser.add_argument("--out", type=Path, help="a file to add the JSON line to")
    args = parser.parse_args()
    loaded = load_model(args.model, device=args.device, dtype=args.dtype)
    items = questions(args.packs, args.items, not args.spread)
    device = loaded.model.device
    asked: list[AskResult] = []

    def fast() -> list[str]:
        options = {"max_new_tokens": args.max_new_tokens, "batch_size": args.rows}
        asked.append(ask(loaded.model, loaded.processor, items, **options))
        return [reply.text for reply in asked[-1].replies]

    def slow() -> list[str]:
        return one_at_a_time(loaded.model, loaded.processor, items, args.max_new_tokens)

    # Kernels are chosen and caches filled before anything is timed.
    one_at_a_time(loaded.model, loaded.processor, items[:2], args.max_new_tokens)
    ask(loaded.model, loaded.processor, items[:16], max_new_tokens=args.max_new_tokens)
    seconds: dict[str, list[float]] = {"one at a time": [], "striate": []}
    cores: dict[str, list[float]] = {name: [] for name in seconds}
    differing = []
    for _ in range(args.repeats):
        expected, taken, used = timed(slow, device)
        seconds["one at a time"].append(taken)
        cores["one at a time"].append(used)
        found, taken, used = timed(fast, device)
        seconds["striate"].append(taken)
        cores["striate"].append(used)
        differing.append(sum(one != other for one, other in zip(expected, found, strict=True)))
    ratios = [slow / fast for slow, fast in zip(seconds["one at a time"], seconds["striate"], strict=True)]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    line = {
        "benchmark": "evaluation speed",
        "device": name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": Path(args.model).name,
        "dtype": args.dtype,
        "packs": [path.name for path in args.packs],
        "items": len(items),
        "pictures": len({image for item in items for image in item.images}),
        "repeats": args.repeats,
        "load": round(os.getloadavg()[0], 2),
        "seconds": {name: [round(value, 2) for value in values] for name, values in seconds.items()},
        "core_seconds": {name: [round(value, 2) for value in values] for name, values in cores.items()},
        "core_ratio": round(statistics.median(cores["one at a time"]) / statistics.median(cores["striate"]), 2),
        "items_per_second": {name: round(len(items) / value, 2) for name, value in medians.items()},
        "ratio": round(medians["one at a time"] / medians["striate"], 2),
        "ratio_spread": [round(min(ratios), 2), round(max(ratios), 2)],
        "differing_answers": max(differing),
        "asking": asked[-1].stats.model_dump(),
    }
    print(f"{'':<16}{'seconds, median':>18}{'items/s':>12}")
    for side, value in medians.items():
        print(f"{side:<16}{value:>18.2f}{len(items) / value:>12.2f}")
    print(
        f"{line['ratio']} x ({min(ratios):.2f} to {max(ratios):.2f}), {max(differing)} of {len(items)} answers differ"
    )
    text = json.dumps(line)
    print(text)
    if args.out:
        with args.out.open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")


if __name__ == "__main__":
    main()
