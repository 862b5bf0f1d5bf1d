"""ScienceQA: school questions with a picture."""

from collections.abc import Iterator

from striate.tasks.benchmarks.formats.benchmark import Benchmark
from striate.tasks.benchmarks.formats.prompt_wording import by_letter
from striate.tasks.benchmarks.formats.release import Release
from striate.tasks.packs.items import Item


def read_scienceqa(release: Release) -> Iterator[Item]:
    """Yield the test questions that have a picture (SQA-I), by letter (Lu et al. 2022, arXiv 2209.09513).

    A hint stands before the question as `Context: ...`. Questions without a picture are left out, as in LLaVA-1.5's
    table.
    """
    problems_file = release.find("problems.json", "data/scienceqa/problems.json")
    splits_file = release.find("pid_splits.json", "data/scienceqa/pid_splits.json")
    problems = release.object(release.json(problems_file), str(problems_file))
    splits = release.object(release.json(splits_file), str(splits_file))
    pictures = release.place("images/test", "test", "data/scienceqa/images/test")
    for name in map(str, release.field(splits, "test", splits_file)):
        row = release.object(problems.get(name), f"{problems_file}, {name}")
        if not row.get("image"):
            continue
        choices = tuple(map(str, release.field(row, "choices", problems_file)))
        hint = str(row.get("hint") or "").strip()
        yield Item(
            id=name,
            pack=release.name,
            task=release.name,
            metric="letter",
            question=by_letter(
                release.text(row, "question", problems_file), choices, f"Context: {hint}" if hint else ""
            ),
            image=release.picture(pictures, name, release.text(row, "image", problems_file)),
            choices=choices,
            answer_index=int(release.field(row, "answer", problems_file)),
        )


SCIENCEQA = Benchmark(
    name="scienceqa",
    title="ScienceQA-IMG",
    summary="school questions with a picture: choice by letter, test set",
    function=read_scienceqa,
    paper="https://arxiv.org/abs/2209.09513",
    source="github.com/lupantech/ScienceQA: data/scienceqa, and its script for the pictures",
    layout=("problems.json", "pid_splits.json", "images/test/ID/image.png (or test/ID/image.png)"),
)
