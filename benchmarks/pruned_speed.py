#!/usr/bin/env python3
"""How much faster a smaller model reads a prompt with a picture and writes an answer, and what memory it takes.

Usage: python benchmarks/pruned_speed.py RUN/checkpoint RUN/pruned [--prompt-tokens 776] [--new-tokens 64] [--repeats 5]
       python benchmarks/pruned_speed.py --shape llava-1.5-7b --remove 8 [--dtype bfloat16] [--device cuda]

The first model is the one that the others are compared with. With `--shape`, both have random weights: a model of that
shape, and the same without its last layers. Models take turns, a round each, so that a busy machine slows all alike;
the ratio is that of the medians, its spread the lowest and highest ratio of a round. Peak memory is each model's own on
an accelerator; on a CPU it is the process's, in which all models lie.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from published_shapes import IMAGE_ID, SHAPES, tiny
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from striate.models.io.devices import resolve_device
from striate.models.io.load import load_model
from striate.models.structure.anatomy import find_anatomy
from striate.models.surgery.remove_layers import remove_layers
from striate.pruning.generation_speed import SpeedTest, speed_prompts
from striate.pruning.removal import layers_to_remove

NO_PADDING = SimpleNamespace(pad_token_id=0)


def of_folders(args: argparse.Namespace) -> Iterator[tuple[str, SpeedTest]]:
    """Yield a test of each model's folder."""
    for folder in args.models:
        loaded = load_model(folder, device=args.device, dtype=args.dtype, merge=True)
        inputs = speed_prompts(loaded.processor, args.prompt_tokens, args.prompts)
        yield str(folder), SpeedTest(loaded.model, loaded.processor.tokenizer, inputs, args.new_tokens)


def of_shape(args: argparse.Namespace) -> Iterator[tuple[str, SpeedTest]]:
    """Yield a test of a random model of the shape, and one of the same without its last layers."""
    device = resolve_device(args.device)
    dtype = getattr(torch, "bfloat16" if args.dtype == "auto" else args.dtype)
    for remove in ("0", args.remove):
        config = tiny(SHAPES[args.shape]()) if args.tiny else SHAPES[args.shape]()
        config.dtype = dtype
        with torch.device(device):
            model: Any = LlavaForConditionalGeneration(config).to(dtype).eval()
        num_layers = find_anatomy(model).num_layers
        count = layers_to_remove(int(remove) if remove.isdigit() else remove, num_layers)
        remove_layers(model, range(num_layers - count, num_layers))
        inputs = shaped_prompts(config, args.prompt_tokens, args.prompts, dtype)
        yield f"{args.shape}, {num_layers - count} layers", SpeedTest(model, NO_PADDING, inputs, args.new_tokens)


def shaped_prompts(config: Any, length: int, prompts: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return random prompts with one picture each for a LLaVA of this config."""
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    ids_BT = torch.randint(10, 900, (prompts, max(length, patches + 2)), generator=torch.Generator().manual_seed(0))
    ids_BT[:, 1 : 1 + patches] = IMAGE_ID
    pictures = torch.randn(prompts, 3, vision.image_size, vision.image_size, dtype=dtype)
    return {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), "pixel_values": pictures}


def compared(first: list[float], other: list[float]) -> list[float]:
    """Return the ratio of the medians, and the lowest and highest ratio of a round."""
    rounds = [one / another for one, another in zip(first, other, strict=True)]
    return [
        round(value, 3) for value in (statistics.median(first) / statistics.median(other), min(rounds), max(rounds))
    ]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="folders of models; the first is compared with")
    parser.add_argument("--shape", choices=list(SHAPES), help="random models of this shape in their place")
    parser.add_argument("--remove", default="25%", help="with --shape: layers to remove, a number or a percentage")
    parser.add_argument("--tiny", action="store_true", help="with --shape: a toy, to try this script")
    parser.add_argument("--prompt-tokens", type=int, default=776)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=1, help="side by side")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, help="a file to add the JSON line to")
    args = parser.parse_args()
    tests = dict(of_shape(args) if args.shape else of_folders(args))
    for test in tests.values():
        test.warm_up()
    for _ in range(args.repeats):
        for test in tests.values():
            test.round()
    report(args, tests)


def report(args: argparse.Namespace, tests: dict[str, SpeedTest]) -> None:
    """Print the table and the JSON line."""
    records = {name: test.record() for name, test in tests.items()}
    first, *_ = tests
    line: dict[str, Any] = {
        "benchmark": "speed of pruned models",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "load": round(os.getloadavg()[0], 2),
        "models": {name: record.model_dump() for name, record in records.items()},
        "ratios": {},
    }
    print(f"{'model':<36}{'layers':>7}{'prefill, s':>12}{'tokens/s':>10}{'weights, GiB':>14}{'peak, GiB':>11}")
    for name, record in records.items():
        peak = "-" if record.peak_memory_gib is None else f"{record.peak_memory_gib:.2f}"
        print(
            f"{name[-35:]:<36}{record.num_layers:>7}{record.prefill_seconds.median:>12.4f}"
            f"{record.decode_tokens_per_second.median:>10.2f}{record.weights_gib:>14.3f}{peak:>11}"
        )
    for name, test in list(tests.items())[1:]:
        ratios = {
            "layers": round(records[first].num_layers / records[name].num_layers, 3),
            "prefill": compared(tests[first].prefill_seconds, test.prefill_seconds),
            "decode": compared(tests[first].decode_seconds, test.decode_seconds),
            "weights": round(records[first].weights_gib / records[name].weights_gib, 3),
        }
        line["ratios"][name] = ratios
        print(f"{name[-35:]}: {ratios}")
    text = json.dumps(line)
    print(text)
    if args.out:
        with args.out.open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")


if __name__ == "__main__":
    main()
