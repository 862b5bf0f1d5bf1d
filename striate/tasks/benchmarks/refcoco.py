"""RefCOCO, RefCOCO+ and RefCOCOg: the box that a sentence describes."""

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    known = release.object(release.json(instances), str(instances))
    boxes = {row["id"]: row["bbox"] for row in release.rows(known, "annotations", instances)}
    photos = {row["id"]: row for row in release.rows(known, "images", instances)}
    pictures = release.place("train2014", "images/train2014", "../train2014", "../images/mscoco/images/train2014")
    for ref in _refs(release, file):
        if ref["split"] not in SPLITS:
            continue
        photo = photos[ref["image_id"]]
        x, y, width, height = boxes[ref["ann_id"]]
        box = _fractions((x, y, x + width, y + height), photo["width"], photo["height"])
        picture = release.picture(pictures, str(photo["file_name"]))
        for sentence in ref["sentences"]:
            name = f"{ref['ref_id']}-{sentence['sent_id']}"
            yield _item(release, ref["split"], name, sentence["sent"], picture, box)


def _from_lines(release: Release, file: Path) -> Iterator[Item]:
    split = file.stem.rpartition("_")[2]
    for number, (place, row) in enumerate(release.lines(file)):
        picture = release.text(row, "image", place)
        path = release.picture(release.place("train2014"), picture.rpartition("/")[2])
        path = path if path.is_file() else release.picture(release.folder, picture)
        width, height = release.field(row, "width", place), release.field(row, "height", place)
        box = _fractions(release.field(row, "bbox", place), width, height)
        yield _item(release, split, f"{split}-{number}", release.text(row, "sent", place), path, box)


def _item(release: Release, split: str, name: str, sentence: str, image: Path, box: str) -> Item:
    return Item(
        id=name,
        pack=release.name,
        task=split,
        metric="iou50",
        question=f"{REGION}{sentence.strip()}",
        image=image,
        answers=(box,),
    )


def _fractions(box: Any, width: float, height: float) -> str:
    """Return a box in pixels as text of fractions, cut to the picture."""
    sides = (width, height, width, height)
    values = [min(max(float(value) / side, 0.0), 1.0) for value, side in zip(box, sides, strict=True)]
    return f"[{', '.join(f'{value:.6f}' for value in values)}]"


def _refs(release: Release, file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".json":
        refs = release.json(file)
    else:
        try:
            refs = _PlainUnpickler(io.BytesIO(file.read_bytes()), encoding="latin-1").load()
        except (OSError, ValueError, EOFError, IndexError, KeyError, pickle.UnpicklingError) as error:
            raise release.damaged(file, f"is no pickle of plain values: {error}") from error
    if not isinstance(refs, list):
        raise release.damaged(file, "holds no list of references")
    return [release.object(ref, str(file)) for ref in refs]


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
