#!/usr/bin/env python3
"""Time striate's own training on one and on several GPUs: 7B LoRA on 25% of the layers, DDP, FSDP2 or ZeRO-3.

    python benchmarks/scale_out.py                       # 1 and 2 GPUs, DDP, LLaVA-1.5-7B's shape, random weights
    python benchmarks/scale_out.py --compiled            # the same with compiled layers
    python benchmarks/scale_out.py --gpus 2 4 8 --way fsdp2     # or zero3
    python benchmarks/scale_out.py --tiny                # a toy on CPU processes

Every GPU gets the same number of samples a step (weak scaling), so N GPUs should learn from N times as many a second.
Samples are random; the engine, its loader, its log and its exchange of gradients are those of `striate train`. Prints
one JSON line a number of GPUs, then a table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from published_shapes import SHAPES, tiny

from striate.config import LoraSection, MachineSection, TrainSection
from striate.data.collate import Collator
from striate.data.encoding import Encoded
from striate.data.label_mask import IGNORED
from striate.data.samples import PLACEHOLDER, Message, Sample
from striate.progress import Silent
from striate.selectors.spec.grammar import resolve
from striate.training.compile.policy import Speed
from striate.training.distributed.ranks import Ranks
from striate.training.precision import MasterWeights
from striate.training.schedule import Plan
from striate.training.session import run_sitting

TEXT_TOKENS = 200
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}
# As configs/accelerate/zero3.yaml has it.
ZERO3 = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
}
WAYS: dict[str, dict[str, str]] = {"ddp": {}, "fsdp2": FSDP, "zero3": ZERO3}


class RandomSamples(Collator):
    """Encodes a sample as random text after one picture's tokens."""

    def __init__(self, config: Any, text_tokens: int, dtype: torch.dtype) -> None:
        self._fill = {"input_ids": 0, "labels": IGNORED}
        self.max_length = 4096
        vision = config.vision_config
        self._pixels = torch.randn(1, 3, vision.image_size, vision.image_size).to(dtype)
        self._images = (vision.image_size // vision.patch_size) ** 2
        self._image_id, self._text = config.image_token_index, text_tokens

    def encode_each(self, samples: Sequence[Sample]) -> list[Encoded]:
        """Return the samples; the second half of the text is the answer."""
        return [self._encode(int(sample.id)) for sample in samples]

    def _encode(self, number: int) -> Encoded:
        generator = torch.Generator().manual_seed(number)
        ids = torch.randint(10, 900, (1, self._images + self._text), generator=generator)
        ids[:, 5 : 5 + self._images] = self._image_id
        labels = ids.clone()
        labels[:, : -(self._text // 2)] = IGNORED
        tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        return Encoded(tokens, {"pixel_values": self._pixels})


def work(args: argparse.Namespace) -> None:
    """Train on this process; the first one prints the line."""
    from true_shapes import build, open_region

    ranks = Ranks.launched()
    cuda = torch.cuda.is_available() and not args.tiny
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    ranks.join(device)
    config = SHAPES["llava-1.5-7b"]()
    config = tiny(config) if args.tiny else config
    region = resolve(args.region, config.text_config.num_hidden_layers)
    plain = argparse.Namespace(method="lora", reference=True)
    dtype = torch.float32 if args.tiny else torch.bfloat16
    model = open_region(build(config, str(device)).to(dtype), region, plain, str(device))  # type: ignore[arg-type]
    half = MasterWeights(model).dtype
    size = args.batch * ranks.world_size * args.accumulation
    train = TrainSection(batch_size=size, max_steps=args.steps, lora=LoraSection(), save_steps=10**6, lr=1e-5)
    machine = MachineSection(micro_batch=args.batch, workers=args.workers)
    samples = [Sample(str(n), (Message("user", PLACEHOLDER),), (Path("x"),)) for n in range(size * args.steps)]
    with tempfile.TemporaryDirectory() as name:
        outcome = run_sitting(
            model,
            samples,
            RandomSamples(config, 16 if args.tiny else TEXT_TOKENS, dtype),
            train,
            machine,
            Plan.of(len(samples), train, machine, ranks.world_size),
            region,
            half=half,
            seed=0,
            work_dir=Path(name) / "work",
            log=Path(name) / "log.jsonl",
            run={},
            checkpoint=None,
            prove=lambda _: "",
            progress=Silent(),
            ranks=ranks,
            speed=Speed(compiled=args.compiled),
        )
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    if ranks.is_main:
        print("LINE " + json.dumps(_line(args, ranks.world_size, outcome.rows, peak, device)), flush=True)
    ranks.leave()


def _line(args: argparse.Namespace, count: int, rows: list[dict[str, Any]], peak: float, device: Any) -> dict[str, Any]:
    """Return what the log says of the steps after the warm-up."""
    timed = rows[args.warmup :]
    seconds = [row["seconds"] for row in timed]
    return {
        "gpus": count,
        "way": args.way if count > 1 else "one process",
        "compiled": args.compiled,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "batch_a_gpu": args.batch,
        "accumulation": args.accumulation,
        "ms_a_step": round(1e3 * statistics.median(seconds), 1),
        "ms_a_step_range": [round(1e3 * min(seconds), 1), round(1e3 * max(seconds), 1)],
        "tokens_per_s": round(statistics.median(row["tokens"] / row["seconds"] for row in timed)),
        "steps": len(timed),
        "peak_gib": round(peak, 2),
        "first_loss": round(rows[0]["loss"], 4),
    }


def measure(count: int, argv: list[str], way: str) -> dict[str, Any]:
    """Return the line of `count` processes, which torchrun starts."""
    script = [str(Path(__file__).resolve()), "--worker", *argv]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    environment = {**os.environ, **(WAYS[way] if count > 1 else {})}
    done = subprocess.run(
        [sys.executable, *launch, *script], capture_output=True, text=True, env=environment, check=False
    )
    found = [line.removeprefix("LINE ") for line in done.stdout.splitlines() if line.startswith("LINE ")]
    if done.returncode or not found:
        raise SystemExit(f"{count} processes failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    line: dict[str, Any] = json.loads(found[0])
    return line


def main() -> None:
    """Read the settings; measure, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--way", choices=list(WAYS), default="ddp")
    parser.add_argument("--compiled", action="store_true", help="compiled decoder layers (not with sharded weights)")
    parser.add_argument("--region", default="uniform:25%")
    parser.add_argument("--batch", type=int, default=8, help="samples of a micro-batch on each GPU")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches between two exchanges of gradients")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="a toy on CPU processes")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    lines = []
    for count in args.gpus:
        lines.append(measure(count, sys.argv[1:], args.way))
        print(json.dumps(lines[-1]), flush=True)
    base = lines[0]["tokens_per_s"] / lines[0]["gpus"]
    print("\n| GPUs | ms a step | tokens/s | times one | efficiency | peak GiB |\n|---|---|---|---|---|---|")
    for line in lines:
        times = line["tokens_per_s"] / base
        cells = [line["gpus"], line["ms_a_step"], f"{line['tokens_per_s']:,}", f"{times:.2f} x"]
        print("| " + " | ".join(map(str, [*cells, f"{times / line['gpus']:.1%}", line["peak_gib"]])) + " |")


if __name__ == "__main__":
    main()
