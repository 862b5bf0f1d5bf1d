"""MME: two yes-or-no questions for every picture, of perception and of cognition."""

from collections.abc import Iterator
from pathlib import Path

from striate.tasks.benchmarks.formats.benchmark import Benchmark
from striate.tasks.benchmarks.formats.prompt_wording import short_answer
from striate.tasks.benchmarks.formats.release import Release
from striate.tasks.packs.items import Item

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
ENDINGS = (".jpg", ".png", ".jpeg")
REQUEST = "Please answer yes or no."


def read_mme(release: Release) -> Iterator[Item]:
    """Yield the questions of all 14 subtasks, in the tasks `perception` and `cognition` (arXiv 2306.13394).

    LLaVA-1.5 replaces the request `Please answer yes or no.` with that for a word or phrase; so does this reader. An id
    is SUBTASK/PICTURE-NUMBER; the score of a task, the sum over its subtasks, is among its figures.
    """
    root = release.place("MME_Benchmark_release_version", "")
    for task, subtasks in (("perception", PERCEPTION), ("cognition", COGNITION)):
        for subtask in subtasks:
            for file in _question_files(release, root / subtask):
                yield from _items(release, task, subtask, file)


def _question_files(release: Release, folder: Path) -> list[Path]:
    """Return the text files of a subtask, which lie beside its pictures or in a folder of their own."""
    inner = folder.relative_to(release.folder)
    return release.find_all(f"{inner}/questions_answers_YN/*.txt", f"{inner}/*.txt")


def _items(release: Release, task: str, subtask: str, file: Path) -> Iterator[Item]:
    """Yield the questions of one picture: a line each, question and answer with a tab between."""
    for number, line in enumerate(release.read(file).splitlines(), start=1):
        if not line.strip():
            continue
        question, tab, answer = line.strip().rpartition("\t")
        if not tab:
            raise release.damaged(f"{file}:{number}", "has no tab between question and answer")
        yield Item(
            id=f"{subtask}/{file.stem}-{number}",
            pack=release.name,
            task=task,
            metric="mme",
            question=short_answer(question.replace(REQUEST, "").strip()),
            image=_picture(release, file),
            answers=(answer.strip(),),
        )


def _picture(release: Release, file: Path) -> Path:
    folders = (file.parent, file.parent.parent / "images")
    candidates = [folder / f"{file.stem}{ending}" for folder in folders for ending in ENDINGS]
    path = next((path for path in candidates if path.is_file()), candidates[0])
    return release.picture(release.row({}, str(file)), path.parent, path.name)


MME = Benchmark(
    name="mme",
    title="MME",
    summary="two yes-or-no questions a picture, 14 subtasks: perception and cognition",
    function=read_mme,
    paper="https://arxiv.org/abs/2306.13394",
    source="github.com/BradyFU/Awesome-Multimodal-Large-Language-Models (MME_Benchmark_release_version)",
    layout=("SUBTASK/NAME.jpg and NAME.txt", "or SUBTASK/images/NAME.jpg and SUBTASK/questions_answers_YN/NAME.txt"),
)
