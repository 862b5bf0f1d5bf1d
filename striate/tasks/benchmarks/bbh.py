"""BIG-Bench Hard: 27 tasks with three worked examples, answered directly or step by step."""

import re
from collections.abc import Iterator
from pathlib import Path

from striate.tasks.benchmarks.formats.benchmark import Benchmark
from striate.tasks.benchmarks.formats.release import Release
from striate.tasks.packs.items import Item

MOST_SHOTS = 3
MARK = "-----"
STEPS = "Let's think step by step."
REASONING = re.compile(re.escape(STEPS) + r".*?[Ss]o the answer is (.*?)\.?\s*(?=\n\s*\nQ:|\Z)", re.DOTALL)
BRACKETED = re.compile(r"\(([A-Z])\)")


def read_bbh(release: Release) -> Iterator[Item]:
    """Yield all questions, with examples that answer directly (Suzgun et al. 2022, arXiv 2210.09261).

    Answer-only prompting: the published step-by-step examples, less their steps. The first line is compared; of an
    answer such as `(A)` the letter alone counts too. The id begins with the task; all questions weigh the same.
    """
    return _items(release, direct=True)


def read_bbh_cot(release: Release) -> Iterator[Item]:
    """Yield all questions with the published step-by-step examples; what follows `the answer is` is compared."""
    return _items(release, direct=False)


def _items(release: Release, direct: bool) -> Iterator[Item]:
    for file in release.find_all("bbh/*.json", "*.json"):
        prompt = _prompt(release, file.stem, direct)
        for number, row in enumerate(release.document(file).rows("examples")):
            target = row.text("target")
            letter = BRACKETED.fullmatch(target)
            yield Item(
                id=f"{file.stem}/{number}",
                pack=release.name,
                task=release.name,
                metric="first_line" if direct else "final_answer",
                question=f"{prompt}Q: {row.text('input')}\nA:{'' if direct else f' {STEPS}'}",
                answers=(target, *([letter[1]] if letter else [])),
            )


def _prompt(release: Release, task: str, direct: bool) -> str:
    file = release.find(f"cot-prompts/{task}.txt", f"../cot-prompts/{task}.txt")
    text = _published(release, file)
    instruction, *examples = re.split(r"\n\s*\n(?=Q:)", text.strip())
    if len(examples) < release.shots:
        raise release.damaged(file, f"has {len(examples)} examples, but {release.shots} are asked for")
    chosen = "\n\n".join([instruction, *examples[: release.shots]])
    return f"{REASONING.sub(lambda match: match[1], chosen) if direct else chosen}\n\n"


def _published(release: Release, file: Path) -> str:
    """Return a prompt file's text after the line that warns against training on it."""
    text = release.read(file)
    warning, mark, rest = text.partition(MARK)
    if not mark:
        return text
    if "Q:" in warning:
        raise release.damaged(file, f"has examples before its line of {MARK}")
    return rest


SOURCE = "github.com/suzgunmirac/BIG-Bench-Hard: bbh and cot-prompts"
LAYOUT = ("bbh/TASK.json", "cot-prompts/TASK.txt")
PAPER = "https://arxiv.org/abs/2210.09261"
BBH = Benchmark(
    name="bbh",
    title="BIG-Bench Hard, direct",
    summary="27 hard tasks, 3 examples that answer directly: exact match of the first line",
    function=read_bbh,
    paper=PAPER,
    source=SOURCE,
    layout=LAYOUT,
    shots=MOST_SHOTS,
)
BBH_COT = Benchmark(
    name="bbh-cot",
    title="BIG-Bench Hard, step by step",
    summary="27 hard tasks, 3 step-by-step examples: exact match of what follows 'the answer is'",
    function=read_bbh_cot,
    paper=PAPER,
    source=SOURCE,
    layout=LAYOUT,
    shots=MOST_SHOTS,
)
