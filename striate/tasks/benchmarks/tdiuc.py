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
    truth = {row["question_id"]: row for row in release.rows(release.json(answers), "annotations", answers)}
    pictures = release.place("Images/val2014", "val2014", "images/val2014")
    for row in release.rows(release.json(questions), "questions", questions):
        number = release.field(row, "question_id", questions)
        known = release.object(truth.get(number), f"{answers}, question {number}")
        yield Item(
            id=f"{release.text(known, 'question_type', answers)}/{number}",
            pack=release.name,
            task=release.name,
            metric="exact",
            question=short_answer(release.text(row, "question", questions)),
            image=pictures / f"COCO_val2014_{int(release.field(row, 'image_id', questions)):012d}.jpg",
            answers=tuple(str(entry["answer"]) for entry in release.rows(known, "answers", answers)),
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
