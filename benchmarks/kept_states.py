#!/usr/bin/env python3
"""Time training steps with a frozen projector three ways: the whole model, on kept features, on kept hidden states.

    python benchmarks/kept_states.py                            # 12 small layers, on a CPU, in a minute
    python benchmarks/kept_states.py --model llava-1.5-7b       # that shape, random weights, one GPU

What is kept lies in (pinned) memory and is copied to the device in every step. Prints one JSON line a way.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from typing import Any

import peft
import torch
from published_shapes import SHAPES, llava, vicuna
from torch import nn
from transformers import CLIPVisionConfig, LlavaConfig
from true_shapes import build, make_batch, shape_of

from striate.models.interventions.hidden_state_tap import HiddenTap, without_pictures
from striate.models.interventions.vision_feature_tap import PIXELS, VisionTap
from striate.models.trainable.apply import apply_region, lora_config
from striate.selectors.spec.grammar import resolve
from striate.training.loss import answer_loss
from striate.training.precision import FrozenModules, MasterWeights

WAYS = ("whole model", "kept features", "kept hidden states")


def small() -> LlavaConfig:
    """Return 12 decoder layers of width 256 behind 6 of a vision encoder of width 128: 64 image tokens."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=112,
        patch_size=14,
    )
    config = llava(vicuna(256, 688, 12, 4), vision)
    config.text_config.vocab_size = 1000
    return config


def open_region(model: Any, spec: str, method: str, device: str) -> tuple[Any, int]:
    """Return the model with the region open and all else frozen, and the region's first layer."""
    region = resolve(spec, model.config.get_text_config().num_hidden_layers)
    if method == "lora":
        with torch.device(device):
            model = peft.get_peft_model(model, lora_config(model, region, train_projector=False))
    apply_region(model, region, method, False)
    return model, region.layers[0]


def kept_of(way: str, vision: VisionTap, hidden: HiddenTap, batch: dict[str, Any]) -> torch.Tensor | None:
    """Return what is kept of the batch, on the CPU."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if way == WAYS[0]:
        return None
    with torch.no_grad():
        found = vision.features(inputs) if way == WAYS[1] else hidden.states(inputs)
    found = found.cpu()
    return found.pin_memory() if torch.cuda.is_available() else found


def serve(
    way: str, vision: VisionTap, hidden: HiddenTap, kept: torch.Tensor | None, batch: dict[str, Any]
) -> tuple[contextlib.AbstractContextManager[None], dict[str, Any]]:
    """Return the context in which what is kept stands for the rest, and the inputs there."""
    if kept is None:
        return contextlib.nullcontext(), batch
    device = batch["input_ids"].device
    here = kept.to(device, non_blocking=True)
    if way == WAYS[1]:
        counted = torch.ones((), device=device).expand(batch[PIXELS].shape)
        return vision.serving(here), {**batch, PIXELS: counted}
    return hidden.serving(here), without_pictures(batch, tuple(batch["input_ids"].shape))


def measure(way: str, model: Any, layer: int, batch: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Return how long a step takes, and how much is kept of a sample."""
    device = batch["input_ids"].device.type
    vision, hidden = VisionTap(model), HiddenTap(model, layer)
    model.train()
    FrozenModules(model, checkpointing=False).set_eval()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, fused=True)
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        kept = kept_of(way, vision, hidden, batch)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    # On a CPU the process's own time: others may use the machine.
    clock = time.perf_counter if device == "cuda" else time.process_time
    seconds = []
    for _ in range(args.warmup + args.steps):
        begin = clock()
        context, inputs = serve(way, vision, hidden, kept, batch)
        with context:
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = answer_loss(model, inputs)
            loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - begin)
    timed = seconds[args.warmup :]
    return {
        "way": way,
        "ms_a_step": round(1e3 * statistics.median(timed), 1),
        "ms_a_step_range": [round(1e3 * pick(timed), 1) for pick in (min, max)],
        "kept_mib_a_sample": round(kept.nbytes / len(batch["input_ids"]) / 2**20, 3) if kept is not None else 0.0,
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if device == "cuda" else None,
        "loss": round(float(loss.detach()), 5),
    }


def main() -> None:
    """Read the settings and print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", choices=["small", *SHAPES])
    parser.add_argument("--region", default="top:4", help="a SPEC; top:4 is the last third of 12 layers")
    parser.add_argument("--method", default="lora", choices=["lora", "full"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--text-tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = small() if args.model == "small" else SHAPES[args.model]()
    model = build(config, device)
    batch = make_batch(config, shape_of(config), args.batch, args.text_tokens, device)
    if device == "cpu":
        model, batch = model.float(), {k: v.float() if v.is_floating_point() else v for k, v in batch.items()}
    model, layer = open_region(model, args.region, args.method, device)
    MasterWeights(model)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    shape = {name: list(value.shape) for name, value in batch.items()}
    print(json.dumps({"device": name, "torch": torch.__version__, **vars(args), "layer": layer, "batch": shape}))
    for way in WAYS:
        print(json.dumps(measure(way, model, layer, batch, args)), flush=True)


if __name__ == "__main__":
    main()
