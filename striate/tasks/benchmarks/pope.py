"""POPE: is this object in the photo? Three ways of choosing absent objects."""

from collections.abc import Iterator

from striate.tasks.benchmarks.formats.benchmark import Benchmark
from striate.tasks.benchmarks.formats.prompt_wording import short_answer
from striate.tasks.benchmarks.formats.release import Release
from striate.tasks.packs.items import Item

CATEGORIES = ("random", "popular", "adversarial")


def read_pope(release: Release) -> Iterator[Item]:
    """Yield the questions of each category, a task each, as yes or no (Li et al. 2023, arXiv 2305.10355)."""
    pictures = release.place("val2014", "coco/val2014", "images")
    for category in CATEGORIES:
        file = release.find(f"coco_pope_{category}.json", f"**/coco_pope_{category}.json*")
        for row in release.lines(file):
            yield Item(
                id=f"{category}-{row.text('question_id')}",
                pack=release.name,
                task=category,
                metric="yes_no",
                question=short_answer(row.text("text")),
                image=release.picture(row, pictures, row.text("image")),
                answers=(row.text("label"),),
            )


POPE = Benchmark(
    name="pope",
    title="POPE",
    summary="is this object in the photo: yes or no with F1 and yes-rate, three tasks",
    function=read_pope,
    paper="https://arxiv.org/abs/2305.10355",
    source="github.com/AoiDragon/POPE: output/coco; pictures: COCO val2014",
    layout=(*(f"coco_pope_{category}.json" for category in CATEGORIES), "val2014/COCO_val2014_ID.jpg"),
)
