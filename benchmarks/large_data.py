"""Writes training data of LLaVA-665K's size over shared small pictures: how long a run takes to its first step.

python benchmarks/large_data.py DATA --samples 665000
python benchmarks/first_step.py DATA/train.jsonl MODEL
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

PICTURES, SIDE = 500, 64
# Of LLaVA-665K: 15 of 16 samples have a picture, with 1 to 10 exchanges; a tenth has long answers.
TEXT_EVERY, MOST_TURNS = 16, 9
WORDS = [
    *("the", "a", "of", "in", "on", "with", "and", "red", "green", "blue", "small", "large", "man", "woman", "dog"),
    *("cat", "table", "street", "window", "picture", "shows", "there", "is", "are", "left", "right", "near", "behind"),
    *(
        "standing",
        "holding",
        "several",
        "people",
        "building",
        "sky",
        "tree",
        "water",
        "bright",
        "dark",
        "what",
        "which",
    ),
    *("where", "how", "many"),
]


def conversations(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield `count` LLaVA records, about 1,500 bytes each."""
    chance = random.Random(seed)
    for number in range(count):
        pictured = number % TEXT_EVERY != 0
        turns = []
        for turn in range(chance.randint(1, MOST_TURNS)):
            asked = f"{_words(chance, 4, 14)}?"
            mark = "<image>\n" if pictured and not turn else ""
            long = number % 10 == 1
            turns += [
                {"from": "human", "value": mark + asked},
                {"from": "gpt", "value": _words(chance, 60, 160) if long else _words(chance, 1, 40)},
            ]
        record: dict[str, Any] = {"id": f"{number:09d}", "conversations": turns}
        if pictured:
            record["image"] = f"{chance.randrange(PICTURES):04d}.jpg"
        yield record


def _words(chance: random.Random, fewest: int, most: int) -> str:
    return " ".join(chance.choices(WORDS, k=chance.randint(fewest, most)))


def write(folder: Path, count: int, as_list: bool) -> Path:
    """Return the file with `count` conversations, and the pictures that they share beside it."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    chance = random.Random(1)
    for number in range(PICTURES):
        colours = Image.frombytes("RGB", (8, 8), chance.randbytes(192))
        colours.resize((SIDE, SIDE)).save(folder / "images" / f"{number:04d}.jpg")
    file = folder / ("train.json" if as_list else "train.jsonl")
    with file.open("w", encoding="utf-8") as stream:
        stream.write("[\n" if as_list else "")
        for number, record in enumerate(conversations(count)):
            stream.write(",\n" if as_list and number else "")
            stream.write(json.dumps(record) + ("" if as_list else "\n"))
        stream.write("\n]\n" if as_list else "")
    return file


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=665_000)
    parser.add_argument("--list", action="store_true", help="one JSON list, as LLaVA-665K itself is")
    given = parser.parse_args()
    print(write(given.folder, given.samples, given.list))
