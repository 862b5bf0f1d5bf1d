#!/usr/bin/env python3
"""Count the tokens of real training samples, and print them as the JSON that `packing.py` reads.

    python benchmarks/length_mix.py MODEL DATA... > benchmarks/length_mix.json

MODEL is a folder with a processor (the built-in LVLM's), DATA are folders in LLaVA format. A row of the result is
[text tokens, answer tokens among them, pictures]; the image tokens are the model's own and are added by who reads it.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from transformers import AutoProcessor

from striate.data.chat_template.rendering import Renderer
from striate.data.reading import read_many
from striate.data.samples import Sample

KEPT = 4096


def count(processor: Any, renderer: Renderer, sample: Sample) -> list[int]:
    """Return [text tokens, answer tokens, pictures] of one sample."""
    conversation = renderer.conversation(sample)
    encoded = processor.tokenizer(conversation.text, add_special_tokens=False, return_offsets_mapping=True)
    spans = conversation.answers
    answers = sum(any(a < span.end and b > span.start for span in spans) for a, b in encoded["offset_mapping"])
    return [len(encoded["input_ids"]) - len(sample.images), answers, len(sample.images)]


def main(model: str, folders: list[str]) -> None:
    """Print a random part of the samples, drawn once, in a random order."""
    processor = AutoProcessor.from_pretrained(model)
    renderer = Renderer(processor)
    samples = read_many([Path(folder) for folder in folders])
    chosen = random.Random(0).sample(samples, min(KEPT, len(samples)))
    rows = [count(processor, renderer, sample) for sample in chosen]
    note = f"{len(rows)} of {len(samples)} samples of {', '.join(Path(folder).name for folder in folders)}"
    lines = ",\n".join(str(rows[first : first + 16])[1:-1] for first in range(0, len(rows), 16))
    print(f'{{"note": {json.dumps(note)}, "columns": ["text", "answer", "pictures"], "rows": [\n{lines}\n]}}')


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
