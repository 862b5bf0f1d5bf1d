"""RefCOCO, RefCOCO+ and RefCOCOg: the box that a sentence describes."""

import io
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from striate.data.rows import Row
from striate.errors import first_line
from striate.storage.read_files import read_bytes, read_json
from striate.tasks.benchmarks.formats.benchmark import Benchmark
from striate.tasks.benchmarks.formats.prompt_wording import REGION
from striate.tasks.benchmarks.formats.release import Release
from striate.tasks.packs.items import Item

SPLITS = ("val", "testA", "testB", "test")


def read_refcoco(release: Release) -> Iterator[Item]:
    """Yield every sentence of the val, testA, testB and test splits found, a task each, scored by IoU of at least 0.5.

    Read from JSON lines with `image`, `sent`, `bbox` ([x1, y1, x2, y2] in pixels), `width` and `height`, as Qwen-VL's
    evaluation has them, or else from the files of `refer` (Yu et al. 2016, arXiv 1608.00272). Boxes become fractions.
    The pickle file is read without running anything that it may hold.
    """
    lines = [path for split in SPLITS for path in sorted(release.folder.glob(f"*_{split}.jsonl"))]
    if lines:
        for file in lines:
            yield from _from_lines(release, file)
        return
    file = release.find("refs(unc).p", "refs(umd).p", "refs(google).p", "refs*.json")
    instances = release.find("instances.json")
    known = release.document(instances)
    boxes = {row.text("id"): row for row in known.rows("annotations")}
    photos = {row.text("id"): row for row in known.rows("images")}
    pictures = release.place("train2014", "images/train2014", "../train2014", "../images/mscoco/images/train2014")
    for ref in _refs(release, file):
        if ref.text("split") not in SPLITS:
            continue
        photo = release.other(ref, "image_id", photos, instances)
        x, y, width, height = release.other(ref, "ann_id", boxes, instances).numbers("bbox", 4)
        box = _fractions((x, y, x + width, y + height), photo)
        picture = release.picture(photo, pictures, photo.text("file_name"))
        for sentence in ref.rows("sentences"):
            name = f"{ref.text('ref_id')}-{sentence.text('sent_id')}"
            yield _item(release, ref.text("split"), name, sentence.text("sent"), picture, box)


def _from_lines(release: Release, file: Path) -> Iterator[Item]:
    split = file.stem.rpartition("_")[2]
    for number, row in enumerate(release.lines(file)):
        picture = row.text("image")
        path = release.picture(row, release.place("train2014"), picture.rpartition("/")[2])
        path = path if path.is_file() else release.picture(row, release.folder, picture)
        box = _fractions(row.numbers("bbox", 4), row)
        yield _item(release, split, f"{split}-{number}", row.text("sent"), path, box)


def _item(release: Release, split: str, name: str, sentence: str, image: Path, box: str) -> Item:
    return Item(
        id=name,
        pack=release.name,
        task=split,
        metric="iou50",
        question=f"{REGION}{sentence}",
        image=image,
        answers=(box,),
    )


def _fractions(box: Sequence[float], photo: Row) -> str:
    """Return a box in pixels as text of fractions of `width` and `height` of its photo, cut to it."""
    width, height = photo.number("width", 1), photo.number("height", 1)
    sides = (width, height, width, height)
    values = [min(max(value / side, 0.0), 1.0) for value, side in zip(box, sides, strict=True)]
    return f"[{', '.join(f'{value:.6f}' for value in values)}]"


def _refs(release: Release, file: Path) -> list[Row]:
    refs = read_json(file, release.form) if file.suffix == ".json" else _unpickled(release, file)
    if not isinstance(refs, list):
        raise release.damaged(file, "holds no list of references")
    return [release.row(ref, f"{file}, reference {number}") for number, ref in enumerate(refs)]


def _unpickled(release: Release, file: Path) -> Any:
    content = read_bytes(file, release.form)
    try:
        return _PlainUnpickler(io.BytesIO(content), encoding="latin-1").load()
    except MemoryError:
        raise
    except Exception as error:  # A damaged pickle raises a dozen kinds.
        raise release.damaged(file, f"is no pickle of plain values: {first_line(error)}") from error


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts, texts and numbers; refuses to import anything."""

    def find_class(self, module: str, name: str) -> Any:
        """Raise: plain values need no class."""
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _entry(name: str, title: str, paper: str) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        summary="the box that a sentence describes: IoU of at least 0.5, a task a split",
        function=read_refcoco,
        paper=paper,
        source="github.com/lichengunc/refer: data; pictures: COCO train2014",
        layout=(
            "refs(unc).p (or refs(umd).p) and instances.json",
            "or *_val.jsonl ...",
            "train2014/COCO_train2014_ID.jpg",
        ),
    )


REFCOCO = _entry("refcoco", "RefCOCO", "https://arxiv.org/abs/1608.00272")
REFCOCO_PLUS = _entry("refcoco-plus", "RefCOCO+", "https://arxiv.org/abs/1608.00272")
REFCOCOG = _entry("refcocog", "RefCOCOg", "https://arxiv.org/abs/1511.02283")
