"""OCRVQA: questions about book covers."""

from collections.abc import Iterator

from striate.tasks.benchmarks.formats.benchmark import Benchmark
from striate.tasks.benchmarks.formats.prompt_wording import short_answer
from striate.tasks.benchmarks.formats.release import Release
from striate.tasks.packs.items import Item

TEST_SPLIT = 3


def read_ocrvqa(release: Release) -> Iterator[Item]:
    """Yield the questions of the test split, scored by two-way containment (Mishra et al. 2019).

    One file holds all splits: 1 is training, 2 validation, 3 test.
    """
    file = release.find("dataset.json")
    pictures = release.place("images")
    for name, book in release.document(file).members():
        if book.whole("split") != TEST_SPLIT:
            continue
        questions, answers = book.texts("questions"), book.texts("answers")
        if len(questions) != len(answers):
            raise book.refuse(
                f"{len(questions)} 'questions' and {len(answers)} 'answers'", "as many of the one as the other"
            )
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            yield Item(
                id=f"{name}-{number}",
                pack=release.name,
                task=release.name,
                metric="containment",
                question=short_answer(question),
                image=release.picture(book, pictures, f"{name}{_ending(book.text('imageURL'))}"),
                answers=(answer,),
            )


def _ending(address: str) -> str:
    """Return the ending of a picture's address: the loading script keeps it."""
    dot = address.rpartition("/")[2].rpartition(".")
    return f".{dot[2]}" if dot[1] else ".jpg"


OCRVQA = Benchmark(
    name="ocrvqa",
    title="OCRVQA",
    summary="questions about book covers: two-way containment, test split",
    function=read_ocrvqa,
    paper="https://doi.org/10.1109/ICDAR.2019.00156",
    source="ocr-vqa.github.io: dataset.json, and the script that fetches the covers",
    layout=("dataset.json", "images/ID.jpg"),
)
