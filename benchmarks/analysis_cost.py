#!/usr/bin/env python3
"""Time the scorers of hidden states and attention beside the plain forward pass that they share, in one run.

Four cases take turns, round after round, on the same batches: a plain forward pass; the same with all scorers of hidden
states; the same with image attention; the same with both. A fifth, on fewer samples, is the usual way of published
code: keep `output_hidden_states`, then loop over samples, layers and tokens in Python with one cosine similarity each.

    python benchmarks/analysis_cost.py --model 7b               LLaVA-1.5-7B's shape, random weights, bfloat16, CUDA
    python benchmarks/analysis_cost.py --model builtin PATH     an LVLM's folder, on the CPU
    python benchmarks/analysis_cost.py --tiny                   a toy on the CPU, in seconds

Prints one JSON line of the machine, one a case, and a table. Times are medians over rounds, with their lowest and
highest; ratios are taken within a round; the loop's are of one sample, times the batch size. Peaks are the device's, or
the process's on a CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from published_shapes import SHAPES, tiny
from rich.console import Console
from rich.table import Table
from torch import Tensor

from striate.models.structure.anatomy import Anatomy, decoder_layers, find_anatomy, unwrap
from striate.models.structure.image_tokens import image_tokens
from striate.scorers import SCORERS
from striate.scorers.base import LayerScorer
from striate.scorers.streaming.masks import TokenMasks, token_masks
from striate.scorers.streaming.stream import LayerStream

GIB = 2**30
PLAIN, HIDDEN, ATTENTION, BOTH, LOOP = (
    "forward",
    "forward + hidden-state scorers",
    "forward + image attention",
    "forward + all of them",
    "loop over tokens",
)


@dataclass
class Measured:
    """What the rounds of one case took, per batch in milliseconds, and the highest peak of memory in GiB.

    `cpu_ms` is processor time of all threads: on a CPU that others use too it is steadier than the clock.
    """

    samples_a_round: int
    ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    peak_gib: float = 0.0


@dataclass
class Bench:
    """The model, one batch of inputs, what its positions hold, and how many of its rows the loop over tokens takes."""

    model: Any
    anatomy: Anatomy
    inputs: dict[str, Tensor]
    masks: TokenMasks
    device: torch.device
    looped: int = 1

    def forward(self, **options: Any) -> Any:
        """Return the output of one pass, with logits of one position."""
        return self.model(**self.inputs, use_cache=False, logits_to_keep=1, **options)

    def scored(self, scorers: list[LayerScorer], batches: int) -> None:
        """Run passes under the scorers, and bring their sums together."""
        with LayerStream(decoder_layers(self.model), scorers) as stream:
            for _ in range(batches):
                # Masks of a new batch each time: preparing them is part of the cost.
                fresh = TokenMasks(self.masks.attended, self.masks.image, self.masks.answer)
                with stream.batch(fresh):
                    self.forward()
        for scorer in scorers:
            stream.results(scorer.name)

    def loop(self, batches: int) -> list[float]:
        """Return Block Influence in the plain published way: one cosine similarity a token, layer and sample."""
        sums = [0.0] * self.anatomy.num_layers
        count = 0
        for _ in range(batches):
            rows = {name: value[: self.looped] for name, value in self.inputs.items()}
            states = self.model(**rows, use_cache=False, logits_to_keep=1, output_hidden_states=True).hidden_states
            for row in range(self.looped):
                count += states[0].shape[1]
                for layer in range(self.anatomy.num_layers):
                    for token in range(states[0].shape[1]):
                        before, after = states[layer][row, token], states[layer + 1][row, token]
                        cosine = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=0)
                        sums[layer] += 1 - cosine.item()
        return [one / count for one in sums]

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def reset_peak(self) -> None:
        """Start measuring the peak of memory anew."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")

    def peak_gib(self) -> float:
        """Return the peak since then; 0 where it can't be told."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / GIB
        status = Path("/proc/self/status")
        lines = status.read_text().splitlines() if status.exists() else []
        return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("VmHWM")), 0.0)


def build(args: argparse.Namespace) -> tuple[Any, torch.device]:
    """Return the model and its device."""
    if args.model and args.model[0] == "builtin":
        from striate.models.io.load import load_model

        return unwrap(load_model(args.model[1], device="cpu").model), torch.device("cpu")
    device = torch.device("cpu" if args.tiny else "cuda")
    config = SHAPES["llava-1.5-7b"]()
    config = tiny(config) if args.tiny else config
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if args.tiny else torch.bfloat16)
    try:
        with device:
            model = transformers.LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval(), device


def make_bench(args: argparse.Namespace) -> Bench:
    """Return the model with one batch: one picture a sample, text after it, its second half an answer."""
    model, device = build(args)
    anatomy = find_anatomy(model)
    pictures, vision = image_tokens(model).count, model.config.vision_config
    ids = torch.randint(10, 900, (args.batch, pictures + args.text_tokens))
    ids[:, 5 : 5 + pictures] = anatomy.image_token_ids[0]
    labels = ids.clone()
    labels[:, : pictures + args.text_tokens - args.text_tokens // 2] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    masks = token_masks(batch, anatomy)
    pixels = torch.randn(args.batch, 3, vision.image_size, vision.image_size, dtype=model.dtype)
    inputs = {"input_ids": ids, "attention_mask": batch["attention_mask"], "pixel_values": pixels}
    return Bench(model, anatomy, {name: value.to(device) for name, value in inputs.items()}, masks, device)


def measure(bench: Bench, args: argparse.Namespace) -> dict[str, Measured]:
    """Return what every case takes; cases take turns within a round."""
    plain = [scorer for scorer in SCORERS if scorer.source in ("hidden states", "attention")]
    hidden = [one for one in plain if one.source == "hidden states"]
    attention = [one for one in plain if one.source == "attention"]
    batches = max(1, args.samples // args.batch // args.rounds)

    def forward(count: int) -> None:
        for _ in range(count):
            bench.forward()

    cases: dict[str, tuple[Callable[[int], Any], int]] = {
        PLAIN: (forward, batches),
        HIDDEN: (lambda count: bench.scored(hidden, count), batches),
        ATTENTION: (lambda count: bench.scored(attention, count), batches),
        BOTH: (lambda count: bench.scored(plain, count), batches),
    }
    if args.loop_rounds:
        cases[LOOP] = (bench.loop, 1)
    found = {
        name: Measured(count * (bench.looped if name == LOOP else args.batch)) for name, (_, count) in cases.items()
    }
    for _, (work, _) in list(cases.items())[:4]:
        work(1)
    for number in range(args.rounds):
        for name, (work, count) in cases.items():
            if name == LOOP and number >= args.loop_rounds:
                continue
            bench.wait()
            bench.reset_peak()
            begin, cpu_begin = time.perf_counter(), time.process_time()
            work(count)
            bench.wait()
            whole = args.batch / bench.looped if name == LOOP else 1
            found[name].ms.append(1e3 * whole * (time.perf_counter() - begin) / count)
            found[name].cpu_ms.append(1e3 * whole * (time.process_time() - cpu_begin) / count)
            found[name].peak_gib = max(found[name].peak_gib, bench.peak_gib())
    return found


def line_of(name: str, one: Measured, plain: Measured, batch: int) -> dict[str, Any]:
    """Return one case as a JSON line."""
    ratios = [mine / theirs for mine, theirs in zip(one.ms, plain.ms, strict=False)]
    cpu_ratios = [mine / theirs for mine, theirs in zip(one.cpu_ms, plain.cpu_ms, strict=False)]
    return {
        "case": name,
        "samples": one.samples_a_round * len(one.ms),
        "rounds": len(one.ms),
        "ms_a_batch": round(statistics.median(one.ms), 2),
        "ms_low": round(min(one.ms), 2),
        "ms_high": round(max(one.ms), 2),
        "seconds_for_1000": round(statistics.median(one.ms) / batch, 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_low": round(min(ratios), 3),
        "ratio_high": round(max(ratios), 3),
        "cpu_ms_a_batch": round(statistics.median(one.cpu_ms), 2),
        "cpu_ratio": round(statistics.median(cpu_ratios), 3),
        "peak_gib": round(one.peak_gib, 3),
        "over_forward_gib": round(one.peak_gib - plain.peak_gib, 3),
    }


def show(lines: list[dict[str, Any]]) -> None:
    """Print the cases as a table."""
    table = Table("case", "samples", "ms a batch", "1,000 samples", "x forward", "peak GiB", "over forward")
    for line in lines:
        table.add_row(
            line["case"],
            str(line["samples"]),
            f"{line['ms_a_batch']:.1f} ({line['ms_low']:.1f} to {line['ms_high']:.1f})",
            f"{line['seconds_for_1000']:.1f} s",
            f"{line['ratio']:.3f} ({line['ratio_low']:.3f} to {line['ratio_high']:.3f})",
            f"{line['peak_gib']:.2f}",
            f"{line['over_forward_gib']:+.2f}",
        )
    Console(width=120).print(table)


def main() -> None:
    """Run the cases and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", metavar="NAME", help="7b, or builtin and a folder")
    parser.add_argument("--tiny", action="store_true", help="a toy on the CPU")
    parser.add_argument("--samples", type=int, help="samples of each of the first four cases, over all rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loop-rounds", type=int, default=2, help="rounds of the loop over tokens, one sample each")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--text-tokens", type=int, help="text tokens a sample")
    parser.add_argument("--out", type=Path, help="a file to write the lines to as well")
    args = parser.parse_args()
    if not args.tiny and (not args.model or args.model[0] not in ("7b", "builtin") or len(args.model) > 2):
        parser.error("say --model 7b, --model builtin PATH, or --tiny")
    if args.model and args.model[0] == "builtin" and len(args.model) != 2:
        parser.error("--model builtin needs the LVLM's folder")
    if args.model == ["7b"] and not torch.cuda.is_available():
        parser.error("--model 7b needs a CUDA device; --tiny runs on the CPU")
    large = args.model == ["7b"] and not args.tiny
    args.samples = args.samples or (1000 if large else 80)
    args.text_tokens = args.text_tokens or (200 if large else 40)
    with torch.no_grad():
        bench = make_bench(args)
        found = measure(bench, args)
    name = torch.cuda.get_device_name() if bench.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    machine: dict[str, Any] = {"device": name, "torch": torch.__version__, "transformers": transformers.__version__}
    machine |= {"model": "tiny" if args.tiny else Path(args.model[-1]).name, "batch": args.batch}
    machine |= {"tokens": bench.inputs["input_ids"].shape[1], "layers": bench.anatomy.num_layers}
    lines = [line_of(name, one, found[PLAIN], args.batch) for name, one in found.items()]
    text = "".join(json.dumps(line) + "\n" for line in [machine, *lines])
    print(text, end="")
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    show(lines)


if __name__ == "__main__":
    main()
