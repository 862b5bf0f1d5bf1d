#!/usr/bin/env python3
"""Time training steps at the true shapes of four LVLMs, random weights, on one accelerator, beside their forecasts.

Every step is striate's own: `lora_config` or `apply_region`, float32 masters, frozen modules in eval mode, bfloat16
autocast, the loss at answer positions, clipping, fused AdamW; and the training proof is made first. The reference
steps are the paper's way at LLaVA-1.5-7B's shape: logits at all positions, no masters, no clipping.

Prints one JSON line a case. Models are built on the accelerator in bfloat16. `--tiny` runs on a CPU in seconds.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TextIO

import peft
import torch
import transformers
from published_shapes import IMAGE_ID, SHAPES, tiny
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from striate.artifacts import Region
from striate.models.forecast.estimate import ACCELERATORS, Accelerator, Settings, forecast
from striate.models.forecast.layer_shapes import ModelShape, model_shape
from striate.models.structure.anatomy import decoder_layers, find_anatomy
from striate.models.structure.meta_model import Blueprint
from striate.models.trainable.apply import apply_region, count_trainable, lora_config
from striate.models.trainable.gradient_proof import prove_trainable
from striate.selectors.spec.grammar import resolve
from striate.training.loss import answer_loss
from striate.training.precision import FrozenModules, MasterWeights, checkpointed

TEXT_TOKENS = 200
BATCHES = (8, 4, 2, 1)


@dataclass(frozen=True)
class Case:
    """One configuration: a model's shape, a region, a method; `reference` is the paper's way of running it."""

    model: str
    region: str
    method: Literal["lora", "qlora", "full"] = "lora"
    checkpointing: bool = False
    reference: bool = False

    @property
    def name(self) -> str:
        """What the printed line is called."""
        parts = [self.model, self.method, self.region]
        return " ".join(parts + ["checkpointed"] * self.checkpointing + ["reference"] * self.reference)


def cases(checkpointed_too: bool) -> list[Case]:
    """Return what runs by default, references first: they are compared with the 7B cases of the same run."""
    found = [
        Case("llava-1.5-7b", region, method, checkpointing, reference=True)
        for region, method, checkpointing in (
            ("all", "lora", True),
            ("uniform:25%", "lora", True),
            ("all", "lora", False),
            ("uniform:25%", "lora", False),
            ("uniform:25%", "full", False),
        )
    ]
    for checkpointing in (False, True)[: 1 + checkpointed_too]:
        found += [Case(model, region, "lora", checkpointing) for model in SHAPES for region in ("uniform:25%", "all")]
    found.append(Case("llava-1.5-7b", "uniform:25%", "full"))
    if find_spec("bitsandbytes"):
        steps = (False, True)[: 1 + checkpointed_too]
        found += [Case("llava-1.5-7b", "uniform:25%", "qlora", checkpointing) for checkpointing in steps]
    return found


def build(config: LlavaConfig, device: str) -> Any:
    """Return a random model, made on `device` in bfloat16."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    model.config.use_cache = False
    return model.train()


def shape_of(config: LlavaConfig) -> ModelShape:
    """Return the widths that the forecast needs."""
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    return model_shape(Blueprint(model, find_anatomy(model)))


def quantise(model: Any, device: str) -> None:
    """Put the decoder layers' linear layers in 4 bits, as `striate.models.io.quantized` has them loaded."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    kind: dict[str, Any] = {"compress_statistics": True, "quant_type": "nf4"}
    for layer in decoder_layers(model):
        for name, module in list(layer.named_modules()):
            if type(module) is nn.Linear:
                parent, _, child = name.rpartition(".")
                bias = module.bias is not None
                packed = Linear4bit(module.in_features, module.out_features, bias, torch.bfloat16, **kind)
                packed.weight = Params4bit(module.weight.data, requires_grad=False, **kind)
                setattr(layer.get_submodule(parent), child, packed.to(device))
    # PEFT chooses its 4-bit adapters by this mark of a loaded model.
    model.is_loaded_in_4bit = True


def open_region(model: Any, region: Region, case: Case, device: str) -> Any:
    """Return `model` with what the case trains open, wrapped by PEFT for LoRA."""
    if case.method == "qlora":
        quantise(model, device)
    if case.method != "full":
        # PEFT makes the factors on the default device: the CPU would take seconds for each model.
        with torch.device(device):
            model = peft.get_peft_model(model, lora_config(model, region))
    apply_region(model, region, case.method)
    if not case.reference:
        MasterWeights(model)
    return model


def make_batch(config: LlavaConfig, shape: ModelShape, size: int, text_tokens: int, device: str) -> dict[str, Any]:
    """Return `size` samples of one picture and `text_tokens` text tokens, the second half of which are answers."""
    images, side = shape.image_tokens, config.vision_config.image_size
    ids = torch.randint(10, 900, (size, images + text_tokens), device=device)
    ids[:, 5 : 5 + images] = IMAGE_ID
    labels = ids.clone()
    labels[:, : images + text_tokens - text_tokens // 2] = -100
    pixels = torch.randn(size, 3, side, side, device=device, dtype=torch.bfloat16)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, "labels": labels}


def loss_of(model: Any, batch: dict[str, Any], case: Case, device: str) -> torch.Tensor:
    """Return the loss: striate's own, or transformers' for the reference."""
    with torch.autocast(device, torch.bfloat16):
        if case.reference:
            loss: torch.Tensor = model(**batch, use_cache=False).loss
            return loss
        return answer_loss(model, batch)


def measure(model: Any, batch: dict[str, Any], case: Case, device: str, steps: int, warmup: int) -> dict[str, Any]:
    """Return milliseconds of a whole step (forward, backward, clipping, AdamW) and the peak in GiB."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, fused=device == "cuda")
    frozen = FrozenModules(model, case.checkpointing)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(warmup + steps):
        begin = time.perf_counter()
        if not case.reference:
            frozen.set_eval()
        loss = loss_of(model, batch, case, device)
        loss.backward()
        if not case.reference:
            nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    timed = [1e3 * value for value in seconds[warmup:]]
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
    return {
        "ms": round(statistics.median(timed), 1),
        "ms_min": round(min(timed), 1),
        "n": steps,
        "steps_ms": [round(spent, 1) for spent in timed],
        "peak_gib": round(peak, 2),
        "loss": round(float(loss.detach()), 3),
    }


def choose_batch(shape: ModelShape, case: Case, largest: int, device: Accelerator) -> int:
    """Return the largest batch at which the case trained on all layers is forecast to fit, so that both have one."""
    if case.reference or case.method == "full":
        return largest
    layers = len(shape.layers)
    everything = Region(layers=tuple(range(layers)), num_layers=layers, spec="all")
    for size in (size for size in BATCHES if size <= largest):
        one = Settings(batch=size, text_tokens=TEXT_TOKENS, checkpointing=case.checkpointing)
        if forecast(shape, everything, one, device).memory.peak_gib < 0.93 * device.memory_gib:
            return size
    return 1


def run(case: Case, args: argparse.Namespace, device: str, accelerator: Accelerator) -> dict[str, Any]:
    """Return one line: the case, its forecast, and what was measured."""
    config = tiny(SHAPES[case.model]()) if args.tiny else SHAPES[case.model]()
    shape = shape_of(config)
    region = resolve(case.region, len(shape.layers))
    text_tokens = 16 if args.tiny else TEXT_TOKENS
    size = choose_batch(shape, case, args.batch, accelerator)
    settings = Settings(
        method=case.method,
        batch=size,
        text_tokens=text_tokens,
        answer_tokens=text_tokens // 2,
        checkpointing=case.checkpointing,
        masters=not case.reference,
        answers_only=not case.reference,
    )
    expected = forecast(shape, region, settings, accelerator)
    line: dict[str, Any] = {"name": case.name, "layers": f"{len(region)} of {len(shape.layers)}", "batch": size}
    line |= {"tokens": shape.image_tokens + text_tokens, "image_tokens": shape.image_tokens}
    line |= {"forecast_ms": round(expected.milliseconds, 1), "forecast_gib": round(expected.memory.peak_gib, 2)}
    begin = time.perf_counter()
    try:
        line |= _measured(case, config, shape, region, size, text_tokens, args, device)
    except torch.OutOfMemoryError as error:
        # Its traceback holds the model.
        traceback.clear_frames(error.__traceback__)
        line["error"] = "out of memory"
    return {**line, "seconds": round(time.perf_counter() - begin, 1)}


def _measured(
    case: Case,
    config: LlavaConfig,
    shape: ModelShape,
    region: Region,
    size: int,
    text_tokens: int,
    args: argparse.Namespace,
    device: str,
) -> dict[str, Any]:
    """Return what one case measures, with its model gone afterwards."""
    model = open_region(build(config, device), region, case, device)
    batch = make_batch(config, shape, size, text_tokens, device)
    found: dict[str, Any] = {}
    with checkpointed(model, case.checkpointing):
        if not case.reference:
            one = {key: value[:1] for key, value in batch.items()}
            with torch.autocast(device, torch.bfloat16):
                found["proof"] = prove_trainable(model, region, one)
        found |= measure(model, batch, case, device, args.steps, args.warmup)
    trainable = count_trainable(model, region, case.method)
    return {**found, "trainable_m": round(trainable.trainable / 1e6, 1), "total_m": round(trainable.total / 1e6, 1)}


def lines(args: argparse.Namespace, device: str) -> Iterator[dict[str, Any]]:
    """Yield a line of the machine, then one a case."""
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    yield {"device": name, **versions, "steps": args.steps, "warmup": args.warmup}
    accelerator = next((one for one in ACCELERATORS if one.name.upper() in name.upper()), ACCELERATORS[0])
    chosen = [case for case in cases(args.checkpointed) if all(word in case.name.split() for word in args.only)]
    begin = time.perf_counter()
    for case in chosen:
        if time.perf_counter() - begin > args.limit:
            yield {"name": case.name, "error": f"not begun: {args.limit} s are over"}
            continue
        yield run(case, args, device, accelerator)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


def write(line: dict[str, Any], stream: TextIO | None) -> None:
    """Print a line, and add it to the file."""
    for place in (sys.stdout, stream):
        if place:
            print(json.dumps(line), file=place, flush=True)


def main() -> None:
    """Run the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="words of a case's name, such as llava-1.5-7b full")
    parser.add_argument("--checkpointed", action="store_true", help="add every LoRA case with gradient checkpointing")
    parser.add_argument("--batch", type=int, default=8, help="the most samples a step")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--limit", type=float, default=450, help="seconds after which no further case begins")
    parser.add_argument("--out", type=Path, help="a file to write the lines to as well")
    parser.add_argument("--tiny", action="store_true", help="toys of the same families, on the CPU")
    args = parser.parse_args()
    device = "cpu" if args.tiny or not torch.cuda.is_available() else "cuda"
    if device == "cpu" and not args.tiny:
        parser.error("there is no CUDA device here; --tiny runs on the CPU")
    stream = args.out.open("w", encoding="utf-8") if args.out else None
    try:
        for line in lines(args, device):
            write(line, stream)
    finally:
        if stream:
            stream.close()


if __name__ == "__main__":
    main()
