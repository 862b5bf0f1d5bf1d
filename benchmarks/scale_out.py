#!/usr/bin/env python3
"""Time striate's own training on one and on several GPUs: 7B LoRA on 25% of the layers, DDP, FSDP2 or ZeRO-3.

    python benchmarks/scale_out.py                              # 1 and 2 GPUs, DDP, layers as they are and compiled
    python benchmarks/scale_out.py --gpus 2 4 8 --way fsdp2     # or zero3
    python benchmarks/scale_out.py --way zero3 --layers compiled plain per-module
    python benchmarks/scale_out.py --tiny                       # a toy on CPU processes

Every GPU gets the same number of samples a step (weak scaling), so N GPUs should learn from N times as many a second.
Weights and samples are random, at LLaVA-1.5-7B's shape; the session, its loader, its log and its exchange of gradients
are those of `striate train`. Layers run as they are (`plain`), compiled, or uncompiled with ZeRO-3's hooks on every
module inside (`per-module`). Prints one JSON line a number of GPUs and kind of layers, then a table. With `--stacks
FOLDER` every process writes the stacks of its threads there every 10 s, to see where it waits.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate.state import AcceleratorState
from published_shapes import SHAPES, tiny
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from true_shapes import build

from striate.config import LoraSection, MachineSection, TrainSection
from striate.data.collate import Collator
from striate.data.encoding import Encoded
from striate.data.label_mask import IGNORED
from striate.data.samples import PLACEHOLDER, Message, Sample
from striate.progress import Silent
from striate.selectors.spec.grammar import resolve
from striate.training import session
from striate.training.compile.policy import LayerExecution
from striate.training.distributed.ranks import Ranks
from striate.training.job import TrainingJob
from striate.training.schedule import Plan
from striate.training.setup import prepared_for_training

TEXT_TOKENS = 200
# As configs/accelerate has them.
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}
ZERO3 = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
}
LAYERS = ("plain", "compiled", "per-module")
WAYS: dict[str, dict[str, str]] = {"ddp": {}, "fsdp2": FSDP, "zero3": ZERO3}


class RandomSamples(Collator):
    """Encodes a sample as random text after one picture's tokens."""

    def __init__(self, config: Any, text_tokens: int, dtype: torch.dtype) -> None:
        self._fill = {"input_ids": 0, "labels": IGNORED}
        self.max_length, self.train = 4096, True
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


class Lines(Silent):
    """Keeps what is said and how many seconds after its start, and prints it to the error stream."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self._begin = time.perf_counter()

    def say(self, text: str) -> None:
        """Keep a line."""
        self.said.append(f"{time.perf_counter() - self._begin:.0f} s: {text}")
        print(self.said[-1], file=sys.stderr, flush=True)

    @contextmanager
    def track(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Yield a function that says when the first step, and the last, is over."""
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if done in (1, total):
                self.say(f"step {done} is over")

        yield advance


def write_stacks(path: Path, seconds: float = 10) -> None:
    """Write the stacks of all threads to a file for as long as the process runs.

    By a thread of Python's: `faulthandler` reads the frames of running threads, which has crashed a process.
    """

    def write() -> None:
        with path.open("w", encoding="utf-8") as stream:
            for count in range(1, 10**6):
                time.sleep(seconds)
                print(f"\n=== after {count * seconds:.0f} s", file=stream)
                for thread, frame in sys._current_frames().items():
                    if thread != threading.get_ident():
                        print("--- thread", thread, file=stream)
                        traceback.print_stack(frame, file=stream)
                stream.flush()

    path.parent.mkdir(parents=True, exist_ok=True)
    threading.Thread(target=write, daemon=True).start()


def work(args: argparse.Namespace) -> None:
    """Train on this process, once for each kind of layers; the first process prints the lines."""
    ranks = Ranks.launched()
    if args.stacks:
        write_stacks(args.stacks / f"stacks.{args.way}.{ranks.rank}.txt")
    cuda = torch.cuda.is_available() and not args.tiny
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    ranks.join(device)
    for layers in args.layers:
        lines = Lines()
        with mock.patch.object(session, "gather_whole_layers") if layers == "per-module" else nullcontext():
            result, peak = train(args, ranks, device, layers == "compiled", lines)
        peak = ranks.maximum(peak, device)
        if ranks.is_main:
            line = _line(args, ranks.world_size, result.rows, device)
            line |= {"layers": layers, "peak_gib": round(peak, 2), "says": lines.said}
            print("LINE " + json.dumps(line), flush=True)
        # They remember ZeRO-3, under which models are built in parts.
        AcceleratorState._reset_state()
        unset_hf_deepspeed_config()
        gc.collect()
        if cuda:
            lines.say(f"{torch.cuda.memory_allocated() / 2**30:.1f} GiB are still held")
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    ranks.leave()


def train(
    args: argparse.Namespace, ranks: Ranks, device: torch.device, compiled: bool, lines: Lines
) -> tuple[session.TrainingResult, float]:
    """Return how a training of random weights on random samples went, and its peak in GiB."""
    config = SHAPES["llava-1.5-7b"]()
    config = tiny(config) if args.tiny else config
    dtype = torch.float32 if args.tiny else torch.bfloat16
    model = build(config, str(device)).to(dtype)
    lines.say("model built")
    region = resolve(args.region, config.text_config.num_hidden_layers)
    size = args.batch * ranks.world_size * args.accumulation
    section = TrainSection(batch_size=size, max_steps=args.steps, lora=LoraSection(), save_steps=10**6, lr=1e-5)
    machine = MachineSection(micro_batch=args.batch, workers=args.workers)
    samples = [Sample(str(n), (Message("user", PLACEHOLDER),), (Path("x"),)) for n in range(size * args.steps)]
    collator = RandomSamples(config, 16 if args.tiny else TEXT_TOKENS, dtype)
    plan = Plan.of(len(samples), section, machine, ranks.world_size)
    job = TrainingJob(region, samples, collator, section, machine, 0, "random", plan)
    with tempfile.TemporaryDirectory() as name, prepared_for_training(model, job) as prepared:
        training = session.TrainingSession(job, prepared, LayerExecution(compiled), ranks, None, lines)
        result = training.run(Path(name) / "work", Path(name) / "log.jsonl", None)
    return result, torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0


def _line(args: argparse.Namespace, count: int, rows: list[dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """Return what the log says of the steps after the warm-up."""
    timed = rows[args.warmup :]
    spent = [1e3 * row["seconds"] for row in timed]
    return {
        "gpus": count,
        "way": args.way if count > 1 else "one process",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "batch_a_gpu": args.batch,
        "accumulation": args.accumulation,
        "ms": round(statistics.median(spent), 1),
        "ms_min": round(min(spent), 1),
        "ms_max": round(max(spent), 1),
        "n": len(spent),
        "tokens_per_s": round(statistics.median(row["tokens"] / row["seconds"] for row in timed)),
        "first_step_s": round(rows[0]["seconds"], 1),
        "loss_first": round(rows[0]["loss"], 4),
        "loss_last": round(rows[-1]["loss"], 4),
    }


def measure(count: int, argv: list[str], way: str) -> list[dict[str, Any]]:
    """Return the lines of `count` processes, which torchrun starts; each is printed as it comes.

    Raises:
        SystemExit: they failed.
    """
    script = [str(Path(__file__).resolve()), "--worker", *argv]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    environment = {**os.environ, **(WAYS[way] if count > 1 else {})}
    lines: list[dict[str, Any]] = []
    with subprocess.Popen(
        [sys.executable, *launch, *script], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        for text in process.stdout or ():
            if text.startswith("LINE "):
                lines.append(json.loads(text.removeprefix("LINE ")))
                print(json.dumps(lines[-1]), flush=True)
    if process.returncode or not lines:
        raise SystemExit(f"{count} processes failed: {process.returncode}")
    return lines


def table(lines: list[dict[str, Any]]) -> str:
    """Return the lines as a Markdown table; each is compared with the first of its kind of layers."""
    rows = ["| layers | GPUs | ms a step (range) | tokens/s | times one | peak GiB |", "|---|---|---|---|---|---|"]
    for line in lines:
        base = next(other for other in lines if other["layers"] == line["layers"])
        times = line["tokens_per_s"] * base["gpus"] / base["tokens_per_s"]
        rows.append(
            f"| {line['layers']} | {line['gpus']} | {line['ms']} ({line['ms_min']} to {line['ms_max']})"
            f" | {line['tokens_per_s']:,} | {times:.2f} | {line['peak_gib']} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Read the settings; measure, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--way", choices=list(WAYS), default="ddp")
    parser.add_argument("--layers", choices=LAYERS, nargs="+", default=LAYERS[:2])
    parser.add_argument("--region", default="uniform:25%")
    parser.add_argument("--batch", type=int, default=8, help="samples of a micro-batch on each GPU")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches between two exchanges of gradients")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--stacks", type=Path, help="write the stacks of all threads to this folder every 20 s")
    parser.add_argument("--tiny", action="store_true", help="a toy on CPU processes")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    print("\n" + table([line for count in args.gpus for line in measure(count, sys.argv[1:], args.way)]))


if __name__ == "__main__":
    main()
