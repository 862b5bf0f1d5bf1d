#!/usr/bin/env python3
"""Time one training step rung by rung, from the paper's way to striate's, in one process on one accelerator.

Every rung prints a JSON line: milliseconds of a whole step (median, least), what compiling took, peak GiB, tokens a
second, the ratio to the reference of the same run, and the loss of the first and last step. A table ends the output.

    training_ladder.py                       all rungs
    training_ladder.py --only exact region   some of them, and the reference
    training_ladder.py --profile exact       where the accelerator's time goes
    training_ladder.py --curves 200          losses of compiled and plain training, and of two plain ones
    training_ladder.py --tiny                toys on the CPU, to test the machinery
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO
from unittest import mock

import peft
import torch
import transformers
from ladder_curves import curves
from ladder_profile import profile
from published_shapes import tiny
from torch import nn
from training_rungs import MODELS, RUNGS, TINY_BATCH, TINY_TEXT, Rung
from true_shapes import build, make_batch, shape_of

from striate.config import TrainSection
from striate.models.forecast.estimate import Settings, forecast
from striate.models.interventions.vision_feature_tap import PIXELS, VisionTap
from striate.models.trainable.apply import apply_region, lora_config
from striate.models.visual_token_skipping.measure_shift import measure_shift
from striate.models.visual_token_skipping.rule import VisualTokenSkipping
from striate.models.visual_token_skipping.visual_compute import VisualCompute
from striate.selectors.spec.grammar import resolve
from striate.training.compile import regional
from striate.training.compile.cuda_graphs import GRAPH_OPTIONS, GraphedSteps
from striate.training.compile.memory_budget import within_budget
from striate.training.compile.policy import ANSWERS_TOGETHER
from striate.training.compile.regional import CompiledLayers, compiled_layers
from striate.training.image_layers import visual_compute
from striate.training.inputs.step_inputs import LabelPositions, SkippingInput, StepInput
from striate.training.inputs.wait_free import WaitFreeInputs
from striate.training.loss import answer_loss
from striate.training.optimizers import check_optimizer
from striate.training.precision import FrozenModules, MasterWeights, checkpointed
from striate.training.quantization.fp8_linear import frozen_in_fp8
from striate.training.quantization.int8_linear import frozen_in_int8

# A batch on the CPU, the same on the device, and what changes it.
Batches = tuple[dict[str, Any], dict[str, Any], list[StepInput]]


class Bench:
    """One model opened for a rung, its batch, and steps on it.

    Attributes:
        waits: whether every step waits for the accelerator before the next one begins.
    """

    waits = False

    def __init__(self, rung: Rung, args: argparse.Namespace, device: str) -> None:
        """Build the model and open its region."""
        self.device, self.args = device, args
        config = MODELS[rung.model]()
        self.config = tiny(config) if args.tiny else config
        self.shape = shape_of(self.config)
        self.region = resolve(rung.region, len(self.shape.layers))
        self.model = self._open(rung)
        self.trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = self._optimizer(rung)

    def _optimizer(self, rung: Rung) -> torch.optim.Optimizer:
        """Return the optimizer of what trains."""
        if rung.optimizer == "adamw":
            return torch.optim.AdamW(self.trainable, lr=1e-4, fused=self.device == "cuda")
        check_optimizer(TrainSection(optimizer=rung.optimizer), torch.device(self.device))
        found: torch.optim.Optimizer = import_module("bitsandbytes").optim.AdamW(
            self.trainable, lr=1e-4, weight_decay=0.01, optim_bits=8
        )
        return found

    def _open(self, rung: Rung) -> Any:
        """Return the model with what the rung trains open."""
        model = build(self.config, self.device)
        if rung.method == "lora":
            with torch.device(self.device):
                model = peft.get_peft_model(model, lora_config(model, self.region, dropout=rung.dropout))
        apply_region(model, self.region, rung.method)
        if not rung.plain:
            MasterWeights(model)
        return model

    def settings(self, rung: Rung) -> Settings:
        """Return the rung's step as the forecast has it."""
        text, compute = TINY_TEXT if self.args.tiny else rung.text, self.computing(rung)
        found = Settings(
            method=rung.method,
            batch=rung.batch,
            text_tokens=text,
            answer_tokens=rung.answers or text // 2,
            checkpointing=rung.checkpointing,
            masters=not rung.plain,
            answers_only=not rung.plain,
            fused=rung.compiled,
            frozen=rung.frozen,
            optimizer=rung.optimizer,
            skipped=frozenset(compute.skipped if compute else ()),
        )
        return within_budget(self.shape, self.region, found, rung.budget) if rung.budget else found

    def computing(self, rung: Rung) -> VisualCompute | None:
        """Return which layers compute image tokens; None where all do."""
        return visual_compute(self.region, TrainSection(image_tokens=rung.image_tokens, image_also=rung.image_also))

    def batch(self, rung: Rung) -> dict[str, Any]:
        """Return a batch of random pictures and tokens."""
        torch.manual_seed(1)
        text = TINY_TEXT if self.args.tiny else rung.text
        found = make_batch(self.config, self.shape, rung.batch, text, self.device)
        if rung.answers:
            found["labels"][:, : -rung.answers] = -100
        return found

    @contextlib.contextmanager
    def prepared(self, rung: Rung) -> Iterator[CompiledLayers | None]:
        """Let the layers run as the rung says."""
        settings = self.settings(rung)
        with contextlib.ExitStack() as stack:
            stack.enter_context(checkpointed(self.model, rung.checkpointing))
            if rung.attention == "cudnn":
                kernels = torch.nn.attention.SDPBackend
                order = [kernels.CUDNN_ATTENTION, kernels.FLASH_ATTENTION, kernels.EFFICIENT_ATTENTION, kernels.MATH]
                stack.enter_context(torch.nn.attention.sdpa_kernel(order, set_priority=True))
            if rung.frozen == "fp8":
                stack.enter_context(frozen_in_fp8(self.model, self.region, print_line))
            if rung.frozen == "int8":
                stack.enter_context(frozen_in_int8(self.model, self.region, print_line))
            if compute := self.computing(rung):
                with torch.autocast(self.device, torch.bfloat16):
                    shift = measure_shift(self.model, compute, [self.batch(rung)])
                stack.enter_context(VisualTokenSkipping(self.model, compute, shift))
            if rung.kept_features:
                stack.enter_context(self.kept(rung))
            if not (rung.compiled or settings.recomputed):
                yield None
                return
            options = {**rung.options, **(GRAPH_OPTIONS if rung.graphs and self.device == "cuda" else {})}
            how = {"recomputed": settings.recomputed, "backend": self.args.backend, "options": options}
            if not rung.keyed:
                stack.enter_context(mock.patch.object(regional, "keyed_dropout", return_value=contextlib.nullcontext()))
            yield stack.enter_context(compiled_layers(self.model, print_line, compiled=rung.compiled, **how))

    def inputs(self, rung: Rung) -> list[StepInput]:
        """Return what happens to a batch before the model takes it."""
        if rung.plain:
            return []
        parts: list[StepInput] = [LabelPositions(ANSWERS_TOGETHER if rung.graphs else 1)] if rung.hints else []
        parts.append(SkippingInput(self.model))
        if rung.hints:
            parts.append(WaitFreeInputs(self.model, print_line, lambda: torch.autocast(self.device, torch.bfloat16)))
        if rung.graphs:
            parts.append(GraphedSteps(self.model))
        return parts

    def kept(self, rung: Rung) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the features of the batch's pictures stand for the vision encoder."""
        tap, pictures = VisionTap(self.model), {PIXELS: self.batch(rung)[PIXELS]}
        with torch.autocast(self.device, torch.bfloat16):
            return tap.serving(tap.features(pictures))

    def step(self, rung: Rung, batches: Batches, frozen: FrozenModules) -> torch.Tensor:
        """Return the loss of one whole step: forward, backward, clipping, AdamW."""
        if not rung.plain:
            frozen.set_eval()
        on_cpu, ready, parts = batches
        with contextlib.ExitStack() as stack:
            for part in parts:
                ready = stack.enter_context(part.serving(ready, on_cpu))
            with torch.autocast(self.device, torch.bfloat16):
                loss = self.model(**ready, use_cache=False).loss if rung.plain else answer_loss(self.model, ready)
            loss.backward()
        if not rung.plain:
            nn.utils.clip_grad_norm_(self.trainable, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def sync(self) -> None:
        """Wait for the accelerator."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def measure(self, rung: Rung) -> dict[str, Any]:
        """Return what the rung's line says."""
        frozen = FrozenModules(self.model, rung.checkpointing)
        with self.prepared(rung) as layers:
            batch = self.batch(rung)
            on_cpu, parts = {name: value.cpu() for name, value in batch.items()}, self.inputs(rung)
            for part in parts:
                on_cpu = part.prepared(on_cpu)
            # On the device already, as a loader brings it there while the step before runs.
            batches = on_cpu, {name: value.to(self.device) for name, value in on_cpu.items()}, parts
            begin = time.perf_counter()
            first = float(self.step(rung, batches, frozen))
            self.sync()
            found: dict[str, Any] = {"first_step_s": round(time.perf_counter() - begin, 1)}
            for _ in range(self.args.warmup):
                self.step(rung, batches, frozen)
            self.sync()
            if self.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            clock = Clock(self.device, self.waits)
            for _ in range(self.args.steps):
                last = self.step(rung, batches, frozen)
                clock.tick()
            timed = clock.milliseconds()
            if layers:
                found |= {"layers_run": layers.describe(), "compile_s": round(layers.compile_seconds, 1)}
                found["recomputed"] = layers.recomputed
            if self.args.profile and rung.name in self.args.profile:
                found["profile"] = profile(lambda: self.step(rung, batches, frozen), self.device)
        tokens = batch["input_ids"].numel()
        middle = statistics.median(timed)
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.device == "cuda" else 0.0
        forecast_gib = forecast(self.shape, self.region, self.settings(rung)).memory.peak_gib
        return found | {
            "ms": round(middle, 1),
            "ms_min": round(min(timed), 1),
            "n": len(timed),
            "steps_ms": [round(spent, 1) for spent in timed],
            "peak_gib": round(peak, 2),
            "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30 if self.device == "cuda" else 0.0, 2),
            "forecast_gib": round(forecast_gib, 2),
            "tokens_per_s": round(1e3 * tokens / middle),
            "tokens": tokens,
            "loss_first": round(first, 4),
            "loss_last": round(float(last), 4),
        }


class Clock:
    """Times steps that follow one another, as in training: the CPU prepares the next while the accelerator works.

    One that waits lets it prepare nothing.
    """

    def __init__(self, device: str, waits: bool = False) -> None:
        """Start it."""
        self._device, self._waits = device, waits
        self._ticks: list[Any] = []
        self.tick()

    def tick(self) -> None:
        """Mark the end of a step, when the accelerator gets there."""
        if self._waits and self._device == "cuda":
            torch.cuda.synchronize()
        if self._waits or self._device != "cuda":
            self._ticks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._ticks.append(event)

    def milliseconds(self) -> list[float]:
        """Return what each step took."""
        if self._waits or self._device != "cuda":
            return [1e3 * (end - begin) for begin, end in pairwise(self._ticks)]
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in pairwise(self._ticks)]


def lines(args: argparse.Namespace, device: str) -> Iterator[dict[str, Any]]:
    """Yield a line of the machine, then one a rung."""
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    yield {"device": name, **versions, "steps": args.steps, "warmup": args.warmup}
    begin, bench, setup, reference = time.perf_counter(), None, None, None
    for rung in chosen(args):
        if time.perf_counter() - begin > args.limit:
            yield {"name": rung.name, "error": f"not begun: {args.limit} s are over"}
            continue
        line: dict[str, Any] = {"name": rung.name, "says": rung.says}
        try:
            if rung.setup != setup:
                bench = setup = None
                _clean(device)
                bench, setup = Bench(rung, args, device), rung.setup
            line |= bench.measure(rung)  # type: ignore[union-attr]
            reference = line["ms"] if rung.name == "reference" else reference
            line |= (
                {"of_reference": round(line["ms"] / reference, 3)} if reference and rung.model.endswith("7b") else {}
            )
        except torch.OutOfMemoryError as error:
            # Its traceback holds the model.
            traceback.clear_frames(error.__traceback__)
            bench = setup = None
            line["error"] = "out of memory"
        yield {**line, "settings": {key: value for key, value in asdict(rung).items() if key not in line}}
        _clean(device)


def chosen(args: argparse.Namespace) -> list[Rung]:
    """Return the rungs to run, small ones in place of the real where asked."""
    found = [
        rung
        for rung in RUNGS
        if (rung.name in args.only or rung.name == "reference" if args.only else not rung.optional or args.everything)
    ]
    return [replace(rung, batch=TINY_BATCH, budget=None, answers=None) for rung in found] if args.tiny else found


def table(found: list[dict[str, Any]]) -> str:
    """Return the lines as a Markdown table."""
    names = ("rung", "ms", "least", "of reference", "peak GiB", "forecast GiB", "tokens/s", "compile s")
    head = f"| {' | '.join(names)} |\n{'|---' * len(names)}|"
    rows = [
        f"| {line['name']}: {line['says']} | {line['ms']} | {line['ms_min']} | {line.get('of_reference', '')}"
        f" | {line['peak_gib']} | {line['forecast_gib']} | {line['tokens_per_s']:,} | {line.get('compile_s', '')} |"
        if "ms" in line
        else f"| {line['name']} | {line['error']} | | | | | | |"
        for line in found
    ]
    return "\n".join([head, *rows])


def write(line: dict[str, Any], stream: TextIO | None) -> None:
    """Print a line, and add it to the file."""
    for place in (sys.stdout, stream):
        if place:
            print(json.dumps(line), file=place, flush=True)


def print_line(line: str) -> None:
    """Show what a part of the engine says, beside the results."""
    print(line, file=sys.stderr)


def _clean(device: str) -> None:
    """Give memory back, and forget compiled graphs of models that are gone."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def main() -> None:
    """Run the rungs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="names of rungs, quoted; the reference runs in any case")
    parser.add_argument("--everything", action="store_true", help="also the rungs that are optional")
    parser.add_argument("--profile", nargs="*", default=[], help="names of rungs to profile")
    parser.add_argument("--curves", type=int, default=0, metavar="STEPS", help="compare losses instead")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--limit", type=float, default=520, help="seconds after which no further rung begins")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--out", type=Path, help="a file to write the lines to as well")
    parser.add_argument("--tiny", action="store_true", help="toys of the same families, on the CPU")
    args = parser.parse_args()
    device = "cpu" if args.tiny or not torch.cuda.is_available() else "cuda"
    if device == "cpu" and not args.tiny:
        parser.error("there is no CUDA device here; --tiny runs on the CPU")
    stream = args.out.open("w", encoding="utf-8") if args.out else None
    try:
        if args.curves:
            write(curves(Bench, args, device), stream)
            return
        found = []
        for line in lines(args, device):
            write(line, stream)
            found += [line] if "name" in line else []
        print(table(found))
    finally:
        if stream:
            stream.close()


if __name__ == "__main__":
    main()
