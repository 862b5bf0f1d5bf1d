"""MMBench: multiple choice about pictures that stand inside a table."""

import base64
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from striate.data.rows import Row
from striate.storage.atomic import write_bytes
from striate.tasks.benchmarks.formats.benchmark import Benchmark
from striate.tasks.benchmarks.formats.prompt_wording import by_letter, letter_index
from striate.tasks.benchmarks.formats.release import Release
from striate.tasks.packs.items import Item

LETTERS = "abcd"
BLANK = ("nan", "none")
LONGEST_REFERENCE = 64


def read_mmbench(release: Release) -> Iterator[Item]:
    """Yield the dev questions, by letter, each asked once (Liu et al. 2023, arXiv 2307.06281).

    CircularEval, which asks each question with its choices turned round as well, is not done. A hint stands before the
    question. The table is streamed: its pictures are written only for the items that are asked, see `unpack_mmbench`.
    """
    file = _table(release)
    for row in release.table(file, delimiter="\t"):
        choices = tuple(itertools.takewhile(bool, (_cell(row, letter) for letter in LETTERS)))
        yield Item(
            id=row.text("index"),
            pack=release.name,
            task=release.name,
            metric="letter",
            question=by_letter(row.text("question"), choices, _cell(row, "hint")),
            image=_place(release, row, _owner(row)),
            choices=choices,
            answer_index=letter_index(row, "answer", len(choices)),
        )


def unpack_mmbench(release: Release, items: Sequence[Item]) -> None:
    """Write the pictures of `items` that are not there yet, one row of the table in memory at a time."""
    file = _table(release)
    missing = {item.image for item in items if item.image is not None and not item.image.is_file()}
    for row in release.table(file, delimiter="\t") if missing else ():
        path = _place(release, row, row.text("index"))
        if path in missing and len(row.text("image")) > LONGEST_REFERENCE:
            try:
                write_bytes(path, base64.b64decode(row.text("image"), validate=True))
            except ValueError as error:
                raise row.refuse(f"the picture of row {row.text('index')} is not base64") from error


def _table(release: Release) -> Path:
    return release.find("mmbench_dev_20230712.tsv", "MMBench_DEV_EN*.tsv", "mmbench_dev*.tsv")


def _owner(row: Row) -> str:
    """Return the index of the row that holds the picture: some rows name another's instead of repeating it."""
    picture = row.text("image") if "image" in row else ""
    return picture if picture and len(picture) <= LONGEST_REFERENCE else row.text("index")


def _place(release: Release, row: Row, index: str) -> Path:
    return release.picture(row, release.unpacked, f"{index}.jpg")


def _cell(row: Row, column: str) -> str:
    """Return a cell's text; what the table's own reader takes for empty is empty."""
    text = row.text(column) if column in row else ""
    return "" if text.lower() in BLANK else text


MMBENCH = Benchmark(
    name="mmbench",
    title="MMBench",
    summary="multiple choice about pictures: choice by letter, dev set, each question asked once",
    function=read_mmbench,
    paper="https://arxiv.org/abs/2307.06281",
    source="github.com/open-compass/MMBench: the table of the dev set",
    layout=("mmbench_dev_20230712.tsv (or MMBench_DEV_EN.tsv)",),
    unpack=unpack_mmbench,
)
