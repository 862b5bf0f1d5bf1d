"""DocVQA: questions about scanned documents."""

from collections.abc import Iterator
from pathlib import Path

from striate.data.rows import Row
from striate.tasks.benchmarks.formats.benchmark import Benchmark
from striate.tasks.benchmarks.formats.prompt_wording import short_answer
from striate.tasks.benchmarks.formats.release import Release
from striate.tasks.packs.items import Item


def read_docvqa(release: Release) -> Iterator[Item]:
    """Yield the validation questions, scored by ANLS (Mathew et al. 2021, arXiv 2007.00398).

    LLaVA-1.5 was not evaluated on it; the prompt is that of its other short answers.
    """
    file = release.find("val_v1.0.json", "val_v1.0*.json", "val/val_v1.0*.json")
    for row in release.document(file).rows("data"):
        yield Item(
            id=row.text("questionId"),
            pack=release.name,
            task=release.name,
            metric="anls",
            question=short_answer(row.text("question")),
            image=_picture(release, row),
            answers=row.texts("answers"),
        )


def _picture(release: Release, row: Row) -> Path:
    """Return where a page lies: the later release has the same pages in another folder."""
    later = release.folder / "spdocvqa_images"
    if later.is_dir():
        return release.picture(row, later, row.text("image").rpartition("/")[2])
    return release.picture(row, release.place("", "val"), row.text("image"))


DOCVQA = Benchmark(
    name="docvqa",
    title="DocVQA",
    summary="questions about scanned documents: ANLS, validation set",
    function=read_docvqa,
    paper="https://arxiv.org/abs/2007.00398",
    source="docvqa.org, task 1 (registration at rrc.cvc.uab.es)",
    layout=("val_v1.0.json (or val_v1.0_withQT.json)", "documents/PAGE.png (or spdocvqa_images/PAGE.png)"),
)
