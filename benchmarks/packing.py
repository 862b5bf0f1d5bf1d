#!/usr/bin/env python3
"""Time training on the length mix of real data: padded batches, padded batches by length, and packed rows.

    python benchmarks/packing.py --model 7b                # LLaVA-1.5-7B's shape, random weights, one GPU
    python benchmarks/packing.py --model builtin PATH      # the built-in LVLM in the folder PATH
    python benchmarks/packing.py --tiny                    # a toy, on a CPU, in seconds

Lengths are those of `length_mix.json`, counted ahead; token ids are random. All ways learn from the same samples in the
same steps, with the same slots a forward pass at most (`--tokens`). Prints one JSON line a way, then a table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from published_shapes import SHAPES, tiny
from torch import nn
from true_shapes import build, open_region

from striate.data.collate import Collator
from striate.data.encoding import Encoded
from striate.data.label_mask import IGNORED
from striate.data.packing import SEGMENTS, Batch, even_rows
from striate.selectors.spec.grammar import resolve
from striate.training.loss import answer_loss
from striate.training.packing.packing_check import Packing, check_packing
from striate.training.precision import FrozenModules

MIX = Path(__file__).parent / "length_mix.json"
WAYS = ("padded, random order", "padded, by length", "packed")


class Joiner(Collator):
    """Joins samples that are tokens already."""

    def __init__(self) -> None:
        self._fill = {"input_ids": 0, "labels": IGNORED}


@dataclass(frozen=True)
class Subject:
    """What is trained: a model, the image tokens of a picture, its id, and one picture's pixels on the device."""

    model: Any
    image_tokens: int
    image_id: int
    pixels: torch.Tensor


@dataclass(frozen=True)
class Case:
    """The region of a model, as `true_shapes.open_region` reads it."""

    method: str = "lora"
    reference: bool = False


def subject(args: argparse.Namespace, device: str) -> Subject:
    """Return the model with its region open."""
    if args.model[0] == "builtin":
        from PIL import Image

        from striate.models.io.load import load_model

        loaded = load_model(args.model[1], device=device)
        ids = loaded.processor(text=["<image>"], images=[[Image.new("RGB", (224, 224))]], return_tensors="pt")
        image_id = loaded.model.config.image_token_id
        count = int((ids["input_ids"] == image_id).sum())
        model, pixels = loaded.model, ids["pixel_values"].to(device, loaded.model.dtype)
    else:
        config = SHAPES["llava-1.5-7b"]()
        config = tiny(config) if args.tiny else config
        model = build(config, device)
        side, patch = config.vision_config.image_size, config.vision_config.patch_size
        pixels = torch.randn(1, 3, side, side, device=device, dtype=model.dtype)
        count, image_id = (side // patch) ** 2, config.image_token_index
    region = resolve(args.region, model.config.get_text_config().num_hidden_layers)
    return Subject(open_region(model, region, Case(args.method), device), count, image_id, pixels)  # type: ignore[arg-type]


def samples(args: argparse.Namespace, what: Subject, count: int) -> list[Encoded]:
    """Return random samples with the lengths, pictures and answers of the real ones."""
    rows = json.loads(args.mix.read_text())["rows"]
    generator = torch.Generator().manual_seed(0)
    found = []
    for text, answer, pictures in (rows * (1 + count // len(rows)))[:count]:
        ids = torch.randint(10, 900, (1, text + pictures * what.image_tokens), generator=generator)
        ids[:, 3 : 3 + pictures * what.image_tokens] = what.image_id
        labels = ids.clone()
        labels[:, : ids.shape[1] - answer] = IGNORED
        tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        found.append(Encoded(tokens, {"pictures": torch.ones(1)} if pictures else {}))
    return found


def groups(way: str, step: list[Encoded], micro: int, tokens: int) -> list[list[Encoded]]:
    """Return the samples of each forward pass of a step."""
    if way == WAYS[2]:
        return [[step[index] for index in row] for row in even_rows([item.length for item in step], tokens)]
    step = sorted(step, key=lambda item: item.length) if way == WAYS[1] else step
    return [step[first : first + micro] for first in range(0, len(step), micro)]


def batches(way: str, step: list[Encoded], micro: int, tokens: int) -> list[Batch]:
    """Return a step's batches, made ahead."""
    joiner = Joiner()
    join = joiner.pack if way == WAYS[2] else joiner.join
    return [join(group) for group in groups(way, step, micro, tokens)]


def ready(batch: Batch, what: Subject, packing: Packing, device: str) -> contextlib.AbstractContextManager[Batch]:
    """Return a context with the batch on the device, its pictures filled in."""
    batch = dict(batch)
    shown = int(batch.pop("pictures").numel()) if "pictures" in batch else 0
    lengths = batch.get(SEGMENTS)
    batch = packing.prepared(batch) if lengths is not None else batch
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    if shown:
        moved["pixel_values"] = what.pixels.expand(shown, -1, -1, -1)
    return packing.serving(moved, batch) if lengths is not None else contextlib.nullcontext(moved)


def train_step(
    what: Subject, made: list[Batch], packing: Packing, optimizer: torch.optim.Optimizer, device: str
) -> torch.Tensor:
    """Return the loss of one optimizer step."""
    answers = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in made)
    total = torch.zeros((), device=device)
    for batch in made:
        with ready(batch, what, packing, device) as inputs:
            with torch.autocast(device, torch.bfloat16):
                loss = answer_loss(what.model, inputs, answers)
            loss.backward()
        total += loss.detach()
    nn.utils.clip_grad_norm_([p for p in what.model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return total


def measure(
    way: str, what: Subject, steps: list[list[Encoded]], args: argparse.Namespace, device: str
) -> dict[str, Any]:
    """Return how fast the model learns from the samples of `steps`, the first ones as a warm-up."""
    packing = Packing(what.model)
    frozen = FrozenModules(what.model, checkpointing=False)
    what.model.train()
    frozen.set_eval()
    start = {name: p.detach().clone() for name, p in what.model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in what.model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    made = [batches(way, step, args.micro, args.tokens) for step in steps]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds, losses = [], []
    for batch in made:
        begin = time.perf_counter()
        losses.append(train_step(what, batch, packing, optimizer, device))
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    for name, parameter in what.model.named_parameters():
        if name in start:
            parameter.data.copy_(start[name])
    timed = made[args.warmup :]
    real = sum(int(batch["attention_mask"].sum()) for one in timed for batch in one)
    slots = sum(batch["attention_mask"].numel() for one in timed for batch in one)
    spent = sum(seconds[args.warmup :])
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
    return {
        "way": way,
        "real_tokens_per_s": round(real / spent),
        "samples_per_s": round(len(timed) * len(steps[0]) / spent, 1),
        "padding": round(1 - real / slots, 4),
        "passes_a_step": round(statistics.mean(len(one) for one in timed), 1),
        "ms_a_step": round(1e3 * statistics.median(seconds[args.warmup :]), 1),
        "ms_a_step_range": [round(1e3 * pick(seconds[args.warmup :]), 1) for pick in (min, max)],
        "peak_gib": round(peak, 2),
        "first_loss": round(float(losses[0]), 4),
    }


def lines(args: argparse.Namespace, device: str) -> Iterator[dict[str, Any]]:
    """Yield a line of the set-up, then one a way."""
    torch.manual_seed(0)
    what = subject(args, device)
    items = samples(args, what, args.batch * (args.warmup + args.steps))
    random.Random(args.seed).shuffle(items)
    steps = [items[first : first + args.batch] for first in range(0, len(items), args.batch)]
    longest = max(item.length for item in items)
    if not args.micro:
        args.micro = max(
            size for size in range(1, args.batch + 1) if args.batch % size == 0 and size * longest <= args.tokens
        )
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    yield {
        "device": name,
        "torch": torch.__version__,
        "model": Path(args.model[-1]).name,
        "region": args.region,
        "method": args.method,
        "batch": args.batch,
        "micro_batch": args.micro,
        "pack_tokens": args.tokens,
        "mean_tokens": round(statistics.mean(item.length for item in items), 1),
        "longest": longest,
    }
    with torch.autocast(device, torch.bfloat16):
        plain = [Encoded(item.tokens, {}) for item in items if not item.pictures][:4]
        yield {"check": check_packing(what.model, Packing(what.model), Joiner(), plain, longest)}
    for way in WAYS:
        yield measure(way, what, steps, args, device)


def main() -> None:
    """Read the settings, print the lines and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["7b"], help="7b, or builtin PATH")
    parser.add_argument("--tiny", action="store_true", help="a toy of the 7B's family, for a CPU")
    parser.add_argument("--region", default="uniform:25%")
    parser.add_argument("--method", default="lora", choices=["lora", "full"])
    parser.add_argument("--batch", type=int, default=128, help="samples of an optimizer step")
    parser.add_argument("--micro", type=int, default=0, help="samples of a padded batch; 0: as many as --tokens allows")
    parser.add_argument("--tokens", type=int, default=8192, help="slots of a forward pass, at most")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mix", type=Path, default=MIX)
    args = parser.parse_args()
    found = []
    for line in lines(args, "cuda" if torch.cuda.is_available() else "cpu"):
        print(json.dumps(line), flush=True)
        found += [line] if "way" in line else []
    base = found[0]["real_tokens_per_s"]
    print("\n| batches | real tokens/s | of random order | padding | passes a step | peak GiB |")
    print("|---|---|---|---|---|---|")
    for row in found:
        share = f"{row['real_tokens_per_s'] / base:.2f} x"
        print(
            f"| {row['way']} | {row['real_tokens_per_s']:,} | {share} | {row['padding']:.1%} |"
            f" {row['passes_a_step']} | {row['peak_gib']} |"
        )


if __name__ == "__main__":
    main()
