#!/usr/bin/env python3
"""Split the training files of data folders by picture: `train.json` keeps most, `held_out.json` gets each n-th.

A calibration set should not have been trained on. All questions about one picture go to the same side; samples without
a picture are split one by one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from striate.errors import DataError, StriateError
from striate.storage.atomic import write_text


def split(samples: list[dict[str, Any]], every: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the samples to train on and those held out, which are those of every `every`-th picture."""
    numbers: dict[str, int] = {}
    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for index, sample in enumerate(samples):
        picture = json.dumps(sample.get("image", sample.get("images", f"sample {index}")))
        number = numbers.setdefault(picture, len(numbers))
        sides[number % every == every - 1].append(sample)
    return sides


def split_folder(folder: Path, every: int) -> tuple[int, int]:
    """Split `train.json` of `folder` in place; return how many samples each side has.

    Raises:
        DataError: the folder was split before, has no `train.json`, or too few pictures.
    """
    source, target = folder / "train.json", folder / "held_out.json"
    if target.exists():
        raise DataError(f"{target} is there already", "a folder that was not split", "remove it, or leave it as it is")
    if not source.is_file():
        raise DataError(f"no {source}", "a folder with train.json", "check the path")
    kept, held_out = split(json.loads(source.read_text(encoding="utf-8")), every)
    if not held_out:
        raise DataError(f"{source} has fewer than {every} pictures", "more pictures", "choose a smaller --every")
    write_text(target, json.dumps(held_out))
    write_text(source, json.dumps(kept))
    return len(kept), len(held_out)


def main() -> int:
    """Split every folder that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders with train.json; it is written anew")
    parser.add_argument("--every", type=int, default=12, help="hold out every n-th picture")
    args = parser.parse_args()
    if args.every < 2:
        parser.error("--every must be 2 or more")
    try:
        for folder in args.folders:
            kept, held_out = split_folder(folder, args.every)
            print(f"{folder}: {kept} samples to train on, {held_out} held out")
    except StriateError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
