"""Parses and checks what `--suite` names: a harness and its tasks. No torch, and no harness is imported here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from striate.errors import ConfigError, SpecError, did_you_mean
from striate.storage.read_files import user_path


@dataclass(frozen=True)
class Harness:
    """One harness: its name in SPECs, its package, and the striate extra that installs it."""

    name: str
    module: str
    what: str


HARNESSES = {
    row.name: row
    for row in (
        Harness("lm-eval", "lm_eval", "EleutherAI's lm-evaluation-harness: the LVLM as a text model"),
        Harness("lmms-eval", "lmms_eval", "lmms-eval: the LVLM on tasks with pictures"),
    )
}


@dataclass(frozen=True)
class Suite:
    """Tasks of one harness; `folder` holds task files (YAML) of one's own."""

    harness: str
    tasks: tuple[str, ...]
    folder: Path | None = None

    @property
    def slug(self) -> str:
        """A name for files: the harness and its tasks."""
        return re.sub(r"[^A-Za-z0-9._+]+", "-", f"{self.harness}-{'+'.join(self.tasks)}")[:80].strip("-")


def parse_suite(text: str) -> Suite:
    """Return the suite that `HARNESS:TASK[,TASK...]` or `HARNESS:TASKS@FOLDER` names.

    Raises:
        SpecError: another harness, no task, or a folder that does not exist.
    """
    name, _, rest = text.partition(":")
    names, at, place = rest.partition("@")
    tasks = tuple(task.strip() for task in names.split(",") if task.strip())
    allowed = "lm-eval:TASK,TASK or lmms-eval:TASK,TASK, with @FOLDER for task files of your own"
    if name not in HARNESSES:
        raise SpecError(
            f"unknown harness {name!r} in {text!r}",
            allowed,
            f"{did_you_mean(name, HARNESSES)}for example lm-eval:arc_easy",
        )
    if not tasks:
        raise SpecError(f"{text!r} names no task", allowed, f"for example {name}:arc_easy,hellaswag")
    folder = user_path(place) if at else None
    if folder is not None and not folder.is_dir():
        raise SpecError(
            f"{text!r}: {place!r} is no folder", allowed, "give the folder that holds the tasks' YAML files"
        )
    return Suite(name, tasks, folder)


def require(suite: Suite) -> str:
    """Return the installed version of the suite's harness.

    Raises:
        ConfigError: it is not installed; the text names the extra.
    """
    harness = HARNESSES[suite.harness]
    if find_spec(harness.module) is None:
        raise ConfigError(
            f"suite {suite.harness}:{','.join(suite.tasks)} needs the package {suite.harness}, which is not installed",
            f"striate with its extra {suite.harness!r}",
            f"pip install 'striate[{suite.harness}]', or leave it out of evaluate.suites and --suite",
        )
    return version(suite.harness)


def check_tasks(suite: Suite, known: list[str]) -> None:
    """Check that the harness knows every task.

    Raises:
        SpecError: it does not; the text names the closest one.
    """
    for task in suite.tasks:
        if task not in known:
            raise SpecError(
                f"{suite.harness} has no task {task!r}",
                f"one of its {len(known)} tasks, groups and tags",
                f"{did_you_mean(task, known)}add @FOLDER for task files of your own",
            )
