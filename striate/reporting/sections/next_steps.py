"""Commands that the page prints: only those that work on this run, as they are printed."""

from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path

from striate.config import RunConfig
from striate.reporting.data.run_artifacts import RunArtifacts
from striate.selectors.spec.grammar import parse_spec
from striate.storage.local_places import portable_command

DEFAULT_OUT = "run"
WHERE = "in the folder where the run was started"


def next_step(artifacts: RunArtifacts, stage: str) -> str | None:
    """Return the command that does `stage` of this run, or None where it would fail or undo what later stages did."""
    place, config = run_place(artifacts), artifacts.config
    if not place or not config or _undone(artifacts, config, stage) or not _ready(artifacts, config, stage):
        return None
    return shlex.join(["striate", stage, "--out", place])


def _undone(artifacts: RunArtifacts, config: RunConfig, stage: str) -> bool:
    """Return whether a later stage was made from what `stage` would write."""
    trained, pruned, asked = bool(artifacts.train), bool(artifacts.prune), bool(artifacts.evals)
    later = {
        "analyze": trained or pruned or asked,
        "select": trained or pruned or asked,
        "train": asked or (pruned and not config.prune.first),
        "prune": trained and config.prune.first,
    }
    return later.get(stage, False)


def _ready(artifacts: RunArtifacts, config: RunConfig, stage: str) -> bool:
    """Return whether all is there that `stage` begins with."""
    scored, chosen = bool(artifacts.scores), bool(artifacts.region)
    trained, pruned = bool(artifacts.train), bool(artifacts.prune)
    first, asked = config.prune.first, config.evaluate.models
    ready = {
        "select": scored or not parse_spec(config.select.region).needs_scores,
        "train": chosen and (pruned or not first) and (scored or not parse_spec(config.train.image_also).needs_scores),
        "prune": chosen and (scored or not config.prune.needs_scores) and (trained or first),
        "evaluate": bool(config.evaluate.packs)
        and (trained or "tuned" not in asked)
        and (pruned or not config.prune.remove or not {"pruned", "unhealed"} & set(asked)),
    }
    return ready.get(stage, True)


def run_place(artifacts: RunArtifacts) -> str | None:
    """Return the run folder as the command that made it named it; None where that is unknown or absolute."""
    if not artifacts.record:
        return None
    try:
        words = shlex.split(artifacts.record.command)
    except ValueError:
        return None
    place = DEFAULT_OUT
    for word, following in pairwise([*words, ""]):
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
