#!/usr/bin/env python3
"""Count how many samples a second one worker prepares: read, decode, resize, tokenise, label.

    python benchmarks/data_loading.py MODEL DATA...

MODEL is a folder with a processor (the built-in LVLM's: 224 px); the same tokenizer is also tried with CLIP's pictures
of 336 px, as LLaVA-1.5 has them. DATA are folders in LLaVA format. Prints one JSON line a way: with pictures, text
alone, and samples that were prepared once and are only joined, with 1024 numbers of features in half precision for
each image token (`machine.cache_vision`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from striate.data.collate import Collator
from striate.data.encoding import Encoded
from striate.data.reading import read_many
from striate.data.samples import Sample

IMAGE_SIDE, PATCH, WIDTH = 336, 14, 1024


def llava_processor(tokenizer: Any, template: str) -> LlavaProcessor:
    """Return LLaVA-1.5's processor around another tokenizer."""
    size = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIDE}, crop_size=size),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=template,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def rate(work: Callable[[], int], seconds: float) -> tuple[float, int]:
    """Return how many samples a second `work`, called for `seconds`, gets done, and how many it did."""
    work()
    done, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        done += work()
    return round(done / (time.perf_counter() - begin), 1), done


def kept(collator: Collator, item: Encoded) -> Encoded:
    """Return a prepared sample with features in the place of its pixels."""
    count = int(collator.image_mask(item.tokens).sum())
    features = {"vision_features": torch.zeros(1, count, WIDTH, dtype=torch.bfloat16)} if count else {}
    return Encoded(item.tokens, features)


def measure(name: str, processor: Any, samples: list[Sample], args: argparse.Namespace) -> None:
    """Print a line for each kind of sample."""
    collator = Collator(processor, 4096, train=True)
    kinds = {"with a picture": [s for s in samples if s.images], "text alone": [s for s in samples if not s.images]}
    for kind, chosen in kinds.items():
        if not chosen:
            continue
        drawn = random.Random(0)

        def work(chosen: list[Sample] = chosen, drawn: random.Random = drawn) -> int:
            collator(drawn.sample(chosen, min(args.batch, len(chosen))))
            return min(args.batch, len(chosen))

        found, count = rate(work, args.seconds)
        print(json.dumps({"processor": name, "samples": kind, "a_second": found, "n": count}), flush=True)
        items = [kept(collator, item) for item in collator.encode_each(chosen[: args.batch])]
        joined, count = rate(lambda items=items: len(collator.join(items)["input_ids"]), args.seconds / 4)
        print(json.dumps({"processor": name, "samples": f"{kind}, prepared before", "a_second": joined, "n": count}))


def main() -> None:
    """Read the settings and measure both processors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    samples = read_many(args.data, 4000, 0)
    processor = AutoProcessor.from_pretrained(args.model)
    print(json.dumps({"cores": os.cpu_count(), "torch_threads": 1, "batch": args.batch, "samples": len(samples)}))
    measure("built-in, 224 px", processor, samples, args)
    template = processor.chat_template or processor.tokenizer.chat_template
    measure("LLaVA-1.5, 336 px", llava_processor(processor.tokenizer, template), samples, args)


if __name__ == "__main__":
    main()
