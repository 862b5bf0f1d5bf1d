"""The models that a run makes: which other one each is made from, and in which folder it lies."""

from __future__ import annotations

from striate.config import RunConfig

FOLDERS = {"tuned": "checkpoint", "unhealed": "unhealed", "pruned": "pruned"}


def origin_of(config: RunConfig, label: str) -> str:
    """Return the label of the model that the run's `tuned` or `pruned` one is made from.

    By default the start is tuned and the tuned model pruned; with `prune.when: before` the start is pruned, and the
    smaller model tuned.
    """
    first = config.prune.first
    return {"tuned": "pruned" if first else "start", "pruned": "start" if first else "tuned"}[label]
