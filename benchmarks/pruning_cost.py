#!/usr/bin/env python3
"""What greedy ranking and refitting take at LLaVA-1.5-7B's shape: seconds, and the peak of memory beside the model's.

    python benchmarks/pruning_cost.py [--samples 128] [--batch 8] [--remove 8] [--out FILE]
    python benchmarks/pruning_cost.py --tiny

Random weights, samples of one picture and `--text-tokens` of text, of which the second half is an answer. Ranks as many
cuts as asked among the layers outside `uniform:25%`, then refits the layers before the gaps. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from published_shapes import IMAGE_ID, SHAPES, tiny
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from striate.models.structure.anatomy import find_anatomy
from striate.pruning.compensation.compensate import compensate
from striate.pruning.greedy_ranking import Question, rank_greedily
from striate.scorers.streaming.batches import Batches
from striate.selectors.spec.grammar import resolve

GIB = 2**30


@dataclass(frozen=True)
class Numbered:
    """A sample that is its number."""

    id: str


@dataclass(frozen=True)
class Shaped:
    """Makes batches of random tokens and pictures for a LLaVA of `config`."""

    config: LlavaConfig
    text_tokens: int

    def __call__(self, samples: Sequence[Numbered]) -> dict[str, Tensor]:
        """Return a training batch."""
        vision: Any = self.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        draw = torch.Generator().manual_seed(int(samples[0].id))
        ids_BT = torch.randint(10, 900, (len(samples), patches + self.text_tokens), generator=draw)
        ids_BT[:, 5 : 5 + patches] = IMAGE_ID
        labels_BT = ids_BT.clone()
        labels_BT[:, : patches + self.text_tokens // 2] = -100
        pictures = torch.randn(len(samples), 3, vision.image_size, vision.image_size, generator=draw)
        return {
            "input_ids": ids_BT,
            "attention_mask": torch.ones_like(ids_BT),
            "labels": labels_BT,
            "pixel_values": pictures.to(self.config.dtype),
        }


def measured(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return what `work` returns, its seconds, and the peak of memory on an accelerator, in GiB."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    found = {"seconds": round(time.perf_counter() - began, 1)}
    if torch.cuda.is_available():
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
    return result, found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="llava-1.5-7b")
    parser.add_argument("--tiny", action="store_true", help="a toy, to try this script")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--text-tokens", type=int, default=200)
    parser.add_argument("--remove", type=int, default=8)
    parser.add_argument("--removed", type=int, nargs="+", help="layers to refit for, without ranking any")
    parser.add_argument("--out", type=Path, help="a file to add the JSON line to")
    args = parser.parse_args()
    config = tiny(SHAPES[args.shape]()) if args.tiny else SHAPES[args.shape]()
    config.dtype = torch.bfloat16
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model: Any = LlavaForConditionalGeneration(config).to(torch.bfloat16).eval()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / GIB
    region = resolve("uniform:25%", find_anatomy(model).num_layers)
    remove = min(args.remove, len(region.outside) - 1)
    samples = [Numbered(str(index)) for index in range(args.samples)]

    def batches() -> Batches[Any, dict[str, Tensor]]:
        return Batches(samples, Shaped(config, args.text_tokens), args.batch)

    removed, ranking = args.removed, None
    if removed is None:
        cuts, ranking = measured(lambda: rank_greedily(model, batches(), region, remove, Question()))
        removed = [cut.layer for cut in cuts]
    done, refit = measured(lambda: compensate(model, batches(), removed, how="refit"))
    line = {
        "benchmark": "cost of ranking and refitting",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "shape": args.shape,
        "samples": args.samples,
        "batch": args.batch,
        "removed": removed,
        "weights_gib": round(weights, 2),
        "ranking": ranking,
        "refit": {**refit, "gaps": len(done.gaps)},
    }
    print(json.dumps(line))
    if args.out:
        with args.out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
