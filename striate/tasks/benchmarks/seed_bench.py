"""SEED-Bench: multiple choice about photos, nine kinds."""

from collections.abc import Iterator

from striate.tasks.benchmarks.formats.benchmark import Benchmark
from striate.tasks.benchmarks.formats.prompt_wording import by_letter, letter_index
from striate.tasks.benchmarks.formats.release import Release
from striate.tasks.packs.items import Item

LETTERS = "abcd"


def read_seed_bench(release: Release) -> Iterator[Item]:
    """Yield the questions about single pictures, by letter (Li et al. 2023, arXiv 2307.16125).

    Questions about videos are left out: SEED-Bench-Image, the figure of the visual-region paper's table.
    """
    file = release.find("SEED-Bench.json")
    pictures = release.place("SEED-Bench-image")
    for row in release.rows(release.json(file), "questions", file):
        if release.field(row, "data_type", file) != "image":
            continue
        choices = tuple(release.text(row, f"choice_{letter}", file) for letter in LETTERS)
        yield Item(
            id=release.text(row, "question_id", file),
            pack=release.name,
            task=release.name,
            metric="letter",
            question=by_letter(release.text(row, "question", file), choices),
            image=release.picture(pictures, release.text(row, "data_id", file)),
            choices=choices,
            answer_index=letter_index(release.text(row, "answer", file)),
        )


SEED_BENCH = Benchmark(
    name="seed-bench",
    title="SEED-Bench-Image",
    summary="multiple choice about photos: choice by letter, the picture part",
    function=read_seed_bench,
    paper="https://arxiv.org/abs/2307.16125",
    source="hub data set AILab-CVC/SEED-Bench: SEED-Bench.json and SEED-Bench-image.zip, unpacked",
    layout=("SEED-Bench.json", "SEED-Bench-image/DATA_ID"),
)
