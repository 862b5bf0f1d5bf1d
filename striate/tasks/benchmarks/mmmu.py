"""MMMU: college questions of 30 subjects, with pictures inside Parquet files."""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase

from striate.data.rows import Row
from striate.data.samples import PLACEHOLDER
from striate.printable import shown
from striate.storage.atomic import write_bytes
from striate.tasks.benchmarks.formats.benchmark import Benchmark
from striate.tasks.benchmarks.formats.parquet import parquet_rows
from striate.tasks.benchmarks.formats.prompt_wording import LETTER, SHORT, letter_index
from striate.tasks.benchmarks.formats.release import Release
from striate.tasks.packs.items import Item

REFERENCE = re.compile(r"<image (\d)>")
COLUMNS = ("id", "question", "options", "answer", "question_type")
PICTURES = tuple(f"image_{number}" for number in range(1, 8))


def read_mmmu(release: Release) -> Iterator[Item]:
    """Yield the validation questions of every subject found (Yue et al. 2024, arXiv 2311.16502).

    Multiple choice is scored by letter; open questions, about one in twenty, by normalised match, which is stricter
    than the benchmark's own search for the answer within the reply. Every `<image N>` of question and options is shown
    where it stands.
    """
    for file in _tables(release):
        for row in parquet_rows(release, file, COLUMNS):
            yield _item(release, row)


def unpack_mmmu(release: Release, items: Sequence[Item]) -> None:
    """Write the pictures of `items` that are not there yet, a few rows in memory at a time."""
    missing = {path for item in items for path in item.images if not path.is_file()}
    for file in _tables(release) if missing else ():
        for row in parquet_rows(release, file, ("id", *PICTURES)):
            for number, column in enumerate(PICTURES, start=1):
                path = _place(release, row, number)
                if path in missing and column in row:
                    write_bytes(path, _bytes(row.row(column)))


def _bytes(picture: Row) -> bytes:
    content = picture.fields.get("bytes")
    if not isinstance(content, bytes):
        raise picture.refuse(f"'bytes' is {shown(content)}", "a picture's bytes")
    return content


def _item(release: Release, row: Row) -> Item:
    """Return one question; an open one has no options."""
    name, question = row.text("id"), row.text("question")
    options = _listed(row, "options")
    lettered = "\n".join(f"({letter}) {option}" for letter, option in zip(ascii_uppercase, options, strict=False))
    text = f"{question}\n\n{lettered}\n\n{LETTER}" if options else f"{question}\n\n{SHORT}"
    numbers = [int(number) for number in REFERENCE.findall(text)] or [1]
    places = [_place(release, row, number) for number in numbers]
    return Item(
        id=name,
        pack=release.name,
        task=release.name,
        metric="letter" if options else "normalised",
        question=REFERENCE.sub(PLACEHOLDER, text),
        image=places[0],
        more_images=tuple(places[1:]),
        choices=options,
        answers=() if options else _listed(row, "answer") or (row.text("answer"),),
        answer_index=letter_index(row, "answer", len(options)) if options else None,
    )


def _listed(row: Row, key: str) -> tuple[str, ...]:
    """Return the list that is written as text under `key`; no list, no entries."""
    text = row.text(key)
    if not text.startswith("["):
        return ()
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise row.refuse(f"{key!r} is no list: {shown(text)}") from error
    return replace(row, fields={key: values}).texts(key) if values else ()


def _tables(release: Release) -> list[Path]:
    return release.find_all("*/validation-*.parquet", "validation-*.parquet")


def _place(release: Release, row: Row, number: int) -> Path:
    return release.picture(row, release.unpacked, f"{row.text('id')}-{number}.png")


MMMU = Benchmark(
    name="mmmu",
    title="MMMU",
    summary="college questions of 30 subjects: choice by letter, validation set (extra: parquet)",
    function=read_mmmu,
    paper="https://arxiv.org/abs/2311.16502",
    source="hub data set MMMU/MMMU, as it is stored there",
    layout=("SUBJECT/validation-00000-of-00001.parquet",),
    unpack=unpack_mmmu,
)
