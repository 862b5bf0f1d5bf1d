"""TDIUC: twelve kinds of questions about COCO and Visual Genome photos."""

from collections.abc import Iterator

from striate.tasks.benchmarks.formats.benchmark import Benchmark
from striate.tasks.benchmarks.formats.prompt_wording import short_answer
from striate.tasks.benchmarks.formats.release import Release
from striate.tasks.packs.items import Item

SPLIT = "mscoco_val2014"


def read_tdiuc(release: Release) -> Iterator[Item]:
    """Yield the validation questions, scored by exact match (Kafle and Kanan 2017, arXiv 1703.09684).

    All kinds of question form one task: the paper's simple accuracy. The id begins with the kind.
    """
    questions = release.find(f"Questions/OpenEnded_{SPLIT}_questions.json", f"**/OpenEnded_{SPLIT}_questions.json")
    answers = release.find(f"Annotations/{SPLIT}_annotations.json", f"**/{SPLIT}_annotations.json")
    truth = {row.text("question_id"): row for row in release.document(answers).rows("annotations")}
    pictures = release.place("Images/val2014", "val2014", "images/val2014")
    for row in release.document(questions).rows("questions"):
        number = row.text("question_id")
        known = release.other(row, "question_id", truth, answers)
        yield Item(
            id=f"{known.text('question_type')}/{number}",
            pack=release.name,
            task=release.name,
            metric="exact",
            question=short_answer(row.text("question")),
            image=release.picture(row, pictures, f"COCO_val2014_{row.whole('image_id'):012d}.jpg"),
            answers=tuple(entry.text("answer") for entry in known.rows("answers")),
        )


TDIUC = Benchmark(
    name="tdiuc",
    title="TDIUC",
    summary="twelve kinds of questions about photos: exact match, validation set",
    function=read_tdiuc,
    paper="https://arxiv.org/abs/1703.09684",
    source="kushalkafle.com/projects/tdiuc.html: questions, annotations, and the script that fetches the photos",
    layout=(
        f"Questions/OpenEnded_{SPLIT}_questions.json",
        f"Annotations/{SPLIT}_annotations.json",
        "Images/val2014/COCO_val2014_ID.jpg",
    ),
)
