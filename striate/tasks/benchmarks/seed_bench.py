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
    for row in release.document(file).rows("questions"):
        if row.text("data_type") != "image":
            continue
        choices = tuple(row.text(f"choice_{letter}") for letter in LETTERS)
        yield Item(
            id=row.text("question_id"),
            pack=release.name,
            task=release.name,
            metric="letter",
            question=by_letter(row.text("question"), choices),
            image=release.picture(row, pictures, row.text("data_id")),
            choices=choices,
            answer_index=letter_index(row, "answer", len(choices)),
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
