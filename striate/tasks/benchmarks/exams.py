"""MMLU, C-Eval and CMMLU: exam questions with worked examples, compared by the likelihood of a letter."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from striate.data.rows import Row
from striate.tasks.benchmarks.formats.benchmark import Benchmark
from striate.tasks.benchmarks.formats.prompt_wording import letter_index
from striate.tasks.benchmarks.formats.release import Release
from striate.tasks.packs.items import Item

LETTERS = ("A", "B", "C", "D")
MMLU_COLUMNS = ("question", *LETTERS, "answer")


@dataclass(frozen=True)
class Wording:
    """How a prompt is written: its first line for a subject, and what stands before questions and answers."""

    header: str
    before_question: str
    before_answer: str


class Subject(NamedTuple):
    """One subject: its name in files, and its title in prompts."""

    name: str
    title: str


ENGLISH = Wording("The following are multiple choice questions (with answers) about {subject}.\n\n", "", "Answer:")
C_EVAL = Wording("以下是中国关于{subject}考试的单项选择题，请选出其中的正确答案。\n\n", "", "答案：")
CHINESE = Wording("以下是关于{subject}的单项选择题，请直接给出正确答案的选项。\n\n", "题目：", "答案是：")


def read_mmlu(release: Release) -> Iterator[Item]:
    """Yield the test questions of all subjects, five examples each from dev (Hendrycks et al. 2021, arXiv 2009.03300).

    The prompt is the paper's; the letter with the largest log-probability after `Answer:` counts. All questions weigh
    the same. The id begins with the subject.
    """
    for file in release.find_all("test/*_test.csv", "data/test/*_test.csv"):
        subject = file.stem.removesuffix("_test")
        shots = _shots(release, file.parent.parent / "dev" / f"{subject}_dev.csv", MMLU_COLUMNS)
        rows = release.table(file, MMLU_COLUMNS)
        yield from _items(release, ENGLISH, Subject(subject, subject.replace("_", " ")), rows, shots)


def read_c_eval(release: Release) -> Iterator[Item]:
    """Yield the validation questions (the test set's answers are not public), five examples each (arXiv 2305.08322)."""
    names = _chinese("c_eval")
    for file in release.find_all("val/*_val.csv", "formal_ceval/val/*_val.csv"):
        subject = file.stem.removesuffix("_val")
        shots = _shots(release, file.parent.parent / "dev" / f"{subject}_dev.csv")
        title = names.get(subject, subject.replace("_", " "))
        yield from _items(release, C_EVAL, Subject(subject, title), release.table(file), shots)


def read_cmmlu(release: Release) -> Iterator[Item]:
    """Yield the test questions of all subjects, five examples each from dev (Li et al. 2023, arXiv 2306.09212)."""
    names = _chinese("cmmlu")
    for file in release.find_all("test/*.csv", "cmmlu_v1_0_1/test/*.csv"):
        shots = _shots(release, file.parent.parent / "dev" / file.name)
        title = names.get(file.stem, file.stem.replace("_", " "))
        yield from _items(release, CHINESE, Subject(file.stem, title), release.table(file), shots)


def _items(
    release: Release,
    wording: Wording,
    subject: Subject,
    rows: Iterator[Row],
    shots: Sequence[Row],
) -> Iterator[Item]:
    examples = [f"{_asked(wording, row)}{row.text('answer')}\n\n" for row in shots]
    before = wording.header.format(subject=subject.title) + "".join(examples)
    for number, row in enumerate(rows):
        yield Item(
            id=f"{subject.name}/{number}",
            pack=release.name,
            task=release.name,
            metric="choice_logprob",
            context=before + _asked(wording, row).rstrip(" "),
            choices=LETTERS,
            answer_index=letter_index(row, "answer", len(LETTERS)),
            compare="sum",
        )


def _asked(wording: Wording, row: Row) -> str:
    lines = [f"{wording.before_question}{row.text('question')}"]
    lines += [f"{letter}. {row.text(letter.lower())}" for letter in LETTERS]
    space = " " if wording.before_answer.endswith(":") else ""
    return "\n".join([*lines, f"{wording.before_answer}{space}"])


def _shots(release: Release, file: Path, columns: tuple[str, ...] = ()) -> list[Row]:
    if not release.shots:
        return []
    release.find(str(file.relative_to(release.folder)))
    rows = list(release.table(file, columns))
    if len(rows) < release.shots:
        raise release.damaged(file, f"has {len(rows)} examples, but {release.shots} are asked for")
    return rows[: release.shots]


@cache
def _chinese(benchmark: str) -> dict[str, str]:
    """Return the Chinese names that the benchmark's authors gave its subjects, by file name."""
    text = resources.files("striate.tasks.benchmarks").joinpath("chinese_subjects.json").read_text(encoding="utf-8")
    names: dict[str, dict[str, str]] = json.loads(text)
    return names[benchmark]


MMLU = Benchmark(
    name="mmlu",
    title="MMLU",
    summary="exam questions of 57 subjects: likeliest letter, 5 examples, test set",
    function=read_mmlu,
    paper="https://arxiv.org/abs/2009.03300",
    source="github.com/hendrycks/test: data.tar",
    layout=("test/SUBJECT_test.csv", "dev/SUBJECT_dev.csv"),
    shots=5,
)
C_EVAL_BENCHMARK = Benchmark(
    name="c-eval",
    title="C-Eval",
    summary="Chinese exam questions of 52 subjects: likeliest letter, 5 examples, validation set",
    function=read_c_eval,
    paper="https://arxiv.org/abs/2305.08322",
    source="hub data set ceval/ceval-exam: ceval-exam.zip, unpacked",
    layout=("val/SUBJECT_val.csv", "dev/SUBJECT_dev.csv"),
    shots=5,
)
CMMLU = Benchmark(
    name="cmmlu",
    title="CMMLU",
    summary="Chinese exam questions of 67 subjects: likeliest letter, 5 examples, test set",
    function=read_cmmlu,
    paper="https://arxiv.org/abs/2306.09212",
    source="hub data set haonan-li/cmmlu: cmmlu_v1_0_1.zip, unpacked",
    layout=("test/SUBJECT.csv", "dev/SUBJECT.csv"),
    shots=5,
)
