#!/usr/bin/env python3
"""Render packs of questions on single abilities, which a small LVLM learns within a minute on one GPU.

    rendered_packs.py MODEL OUT --pictures 40000 --tests 400 --held 150

OUT gets a folder a kind of picture in LLaVA format: `train.json` has all questions on a picture as one conversation,
`test.jsonl` one question a picture, all abilities alike often, `held_out.json` the same for analyses. Every one says
which ability it asks for. Two sets of kinds:

    new       crowds of shapes and letters, a word, two lines: recognition, counting, compare, binding (of colour and
              shape), relation, grounding (a box), reading
    aligned   what the built-in LVLM was aligned on, other pictures: colour, shape, counting, place, relation, reading,
              tallest, compare

MODEL's tokenizer (a folder's, or that of `builtin`) names the words; a tenth of them are in tests alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from crowded_scenes import Asked, crowd
from PIL import Image
from rendered_scenes import GENERATORS, Supplies, words_of
from transformers import AutoTokenizer

from striate.data.shapes import COLOURS, SHAPES
from striate.demo.places import locate_model
from striate.progress import Silent


class Kind(NamedTuple):
    """One kind of picture: its folder, its share of training pictures, and the abilities that tests ask for."""

    folder: str
    share: float
    abilities: tuple[str, ...]


SETS = {
    "new": {
        "crowd": Kind(
            "crowds",
            0.7,
            ("recognition", "counting", "compare", "binding", "relation", "grounding", "reading"),
        ),
        "reading": Kind("words", 0.15, ("reading",)),
        "two_lines": Kind("lines", 0.15, ("reading",)),
    },
    "aligned": {
        "scene": Kind("scenes", 0.4, ("colour", "shape", "counting", "place", "relation")),
        "counting": Kind("numbers", 0.14, ("counting",)),
        "reading": Kind("words", 0.26, ("reading",)),
        "two_lines": Kind("lines", 0.1, ("reading",)),
        "bars": Kind("bars", 0.1, ("tallest", "compare", "counting")),
    },
}
KINDS = {name: kind for kinds in SETS.values() for name, kind in kinds.items()}
# Far from the seeds that aligned the built-in LVLM.
FIRST = {"train": 10_000_000, "test": 20_000_000, "held": 30_000_000}
SUPPLIES: dict[str, Supplies] = {}


class Drawn(NamedTuple):
    """A picture's path in its folder, and what is asked about it."""

    name: str
    asked: list[Asked]


def is_held(word: str) -> bool:
    """Return whether a word is for tests alone, as a tenth is."""
    return zlib.crc32(word.encode()) % 10 == 0


def picture(kind: str, seed: int, supplies: Supplies) -> tuple[Image.Image, list[Asked]]:
    """Return the picture and questions of `kind` that `seed` stands for."""
    rng = random.Random(f"{kind}-{seed}")
    if kind == "crowd":
        return crowd(rng, supplies.side)
    canvas, questions = GENERATORS[kind](rng, supplies)
    return canvas, [Asked(ability(asked, answer), asked, answer) for asked, answer in questions]


def ability(question: str, answer: str) -> str:
    """Return which ability a question of striate's own generators asks for."""
    begins = question.split(maxsplit=1)[0]
    if begins in ("Count", "How"):
        return "counting"
    if begins in ("Where", "In"):
        return "place"
    if begins == "Is":
        return "compare" if answer in ("yes", "no") else "relation"
    if "tallest" in question or "shortest" in question:
        return "tallest"
    if answer in SHAPES and "text" not in question:
        return "shape"
    return "colour" if answer in COLOURS and "colour" in question else "reading"


def draw(job: tuple[str, str, int, Path]) -> Drawn:
    """Write a picture, and return what is asked about it, in random order."""
    kind, use, seed, out = job
    canvas, asked = picture(kind, seed, SUPPLIES[use])
    name = f"images/{use}-{seed}.png"
    canvas.save(out / KINDS[kind].folder / name, compress_level=1)
    return Drawn(name, random.Random(seed).sample(asked, len(asked)))


def conversation(identity: str, task: str, name: str, turns: list[Asked]) -> dict[str, Any]:
    """Return a sample of a picture with some of its questions."""
    said = []
    for index, turn in enumerate(turns):
        said.append({"from": "human", "value": ("" if index else "<image>\n") + turn.question})
        said.append({"from": "gpt", "value": turn.answer})
    return {"id": identity, "image": name, "conversations": said, "task": task}


def singles(drawn: Iterator[Drawn], abilities: tuple[str, ...], each: int) -> list[tuple[str, Asked]]:
    """Return `each` questions of every ability, each on a picture of its own."""
    found: list[tuple[str, Asked]] = []
    seen: Counter[str] = Counter()
    for name, asked in drawn:
        wanted = [one for one in asked if one.ability in abilities and seen[one.ability] < each]
        if wanted:
            rarest = min(wanted, key=lambda one: seen[one.ability])
            seen[rarest.ability] += 1
            found.append((name, rarest))
        if len(found) == each * len(abilities):
            return found
    return found


def write_kind(name: str, kind: Kind, args: argparse.Namespace, pool: Any) -> str:
    """Write the folder of one kind of picture; return what it holds."""
    folder = args.out / kind.folder
    (folder / "images").mkdir(parents=True)
    jobs = ((name, "train", FIRST["train"] + number, args.out) for number in range(round(args.pictures * kind.share)))
    train = [
        conversation(f"{kind.folder}-{number}", kind.folder, *drawn)
        for number, drawn in enumerate(pool.imap(draw, jobs, chunksize=32))
    ]
    test, held = (
        singles((draw((name, use, FIRST[use] + number, args.out)) for number in count()), kind.abilities, each)
        for use, each in (("test", args.tests), ("held", args.held))
    )
    calibration = [
        conversation(f"{kind.folder}-held-{number}", one.ability, path, [one])
        for number, (path, one) in enumerate(held)
    ]
    (folder / "train.json").write_text(json.dumps(train))
    (folder / "held_out.json").write_text(json.dumps(calibration))
    (folder / "test.jsonl").write_text("".join(_item(kind, number, *one) for number, one in enumerate(test)))
    questions = sum(len(sample["conversations"]) // 2 for sample in train)
    return f"{kind.folder}: {len(train)} pictures with {questions} questions; {len(test)} in tests, {len(held)} held"


def _item(kind: Kind, number: int, path: str, asked: Asked) -> str:
    """Return the line of a test item."""
    found = {"id": f"{kind.folder}-{number}", "image": path, "question": asked.question, "answers": [asked.answer]}
    return json.dumps({**found, "metric": asked.metric, "task": asked.ability}) + "\n"


def main() -> None:
    """Render all kinds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="whose tokenizer names the words to write")
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    parser.add_argument("--set", choices=SETS, default="new")
    parser.add_argument("--pictures", type=int, default=40_000, help="to train on, of all kinds together")
    parser.add_argument("--tests", type=int, default=400, help="test items an ability and folder")
    parser.add_argument("--held", type=int, default=150, help="the same of samples held out for analyses")
    parser.add_argument("--side", type=int, default=224, help="pixels of a picture's edge")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"{args.out} is there already: give a folder that is not")
    words = words_of(AutoTokenizer.from_pretrained(locate_model(args.model, Silent())).get_vocab())
    SUPPLIES["train"] = Supplies([word for word in words if not is_held(word)], side=args.side)
    SUPPLIES["test"] = SUPPLIES["held"] = Supplies([word for word in words if is_held(word)], side=args.side)
    with multiprocessing.get_context("fork").Pool(args.workers) as pool:
        for name, kind in SETS[args.set].items():
            print(write_kind(name, kind, args, pool), flush=True)


if __name__ == "__main__":
    main()
