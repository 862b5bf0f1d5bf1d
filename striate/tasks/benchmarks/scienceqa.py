"""ScienceQA: school questions with a picture."""

from collections.abc import Iterator

from striate.printable import shown
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
    problems = release.document(problems_file)
    pictures = release.place("images/test", "test", "data/scienceqa/images/test")
    splits = release.document(splits_file)
    for name in splits.texts("test"):
        if name not in problems:
            raise splits.refuse(f"'test' names {shown(name)}, but {problems_file} has no such question")
        row = problems.row(name)
        if not row.fields.get("image"):
            continue
        choices = row.texts("choices")
        hint = row.text("hint") if "hint" in row else ""
        yield Item(
            id=name,
            pack=release.name,
            task=release.name,
            metric="letter",
            question=by_letter(row.text("question"), choices, f"Context: {hint}" if hint else ""),
            image=release.picture(row, pictures, name, row.text("image")),
            choices=choices,
            answer_index=row.whole("answer"),
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
