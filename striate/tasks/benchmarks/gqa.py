"""GQA: compositional questions about photos."""

from collections.abc import Iterator

from striate.tasks.benchmarks.formats.benchmark import Benchmark
from striate.tasks.benchmarks.formats.prompt_wording import short_answer
from striate.tasks.benchmarks.formats.release import Release
from striate.tasks.packs.items import Item

QUESTIONS = "testdev_balanced_questions.json"


def read_gqa(release: Release) -> Iterator[Item]:
    """Yield the balanced test-dev questions, scored by exact match (Hudson and Manning 2019, arXiv 1902.09506)."""
    file = release.find(QUESTIONS, f"questions*/{QUESTIONS}", f"data/{QUESTIONS}")
    pictures = release.place("images", "data/images")
    for name, row in release.document(file).members():
        yield Item(
            id=name,
            pack=release.name,
            task=release.name,
            metric="exact",
            question=short_answer(row.text("question")),
            image=release.picture(row, pictures, f"{row.text('imageId')}.jpg"),
            answers=(row.text("answer"),),
        )


GQA = Benchmark(
    name="gqa",
    title="GQA",
    summary="compositional questions about photos: exact match, balanced test-dev",
    function=read_gqa,
    paper="https://arxiv.org/abs/1902.09506",
    source="cs.stanford.edu/people/dorarad/gqa/download.html: questions 1.2 and images",
    layout=(QUESTIONS, "images/IMAGE_ID.jpg"),
)
