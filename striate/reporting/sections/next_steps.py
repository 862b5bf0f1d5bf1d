"""Commands that the page prints: only those that work on this run, as they are printed."""

from __future__ import annotations

import shlex
from pathlib import Path

from striate.reporting.data.run_artifacts import RunArtifacts
from striate.storage.local_places import portable_command

DEFAULT_OUT = "run"
WHERE = "in the folder where the run was started"


def next_step(artifacts: RunArtifacts, stage: str) -> str | None:
    """Return the command that does `stage` of this run, or None where it would fail or undo what later stages did."""
    place, config = run_place(artifacts), artifacts.config
    later = {
        "analyze": (artifacts.train, artifacts.prune),
        "select": (artifacts.train, artifacts.prune),
        "train": (artifacts.prune if config and not config.prune.first else None,),
        "prune": (artifacts.train if config and config.prune.first else None,),
    }
    done_after = [*later.get(stage, ()), *(artifacts.evals.values() if stage in ("analyze", "select", "train") else ())]
    if not place or not config or any(done_after):
        return None
    if stage == "evaluate" and not config.evaluate.packs:
        return None
    return shlex.join(["striate", stage, "--out", place])


def run_place(artifacts: RunArtifacts) -> str | None:
    """Return the run folder as the command that made it named it; None where that is unknown or absolute."""
    if not artifacts.record:
        return None
    try:
        words = shlex.split(artifacts.record.command)
    except ValueError:
        return None
    place = DEFAULT_OUT
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--out":
            place = following
        elif word.startswith("--out="):
            place = word.removeprefix("--out=")
    # A folder that was moved since, or that only this machine has, is no place to send a reader to.
    moved = Path(place).name != artifacts.run.resolve().name
    return None if Path(place).is_absolute() or moved or words[:1] != ["striate"] else place


def commands_to_repeat(artifacts: RunArtifacts) -> list[str]:
    """Return the commands that make this run again: that of its last stage, and one from its config."""
    place = run_place(artifacts)
    lines = [portable_command(artifacts.record.command)] if artifacts.record else []
    if place and artifacts.config:
        lines.append(shlex.join(["striate", "run", f"{place}/config.yaml", "--out", f"{place}-again"]))
    return lines
