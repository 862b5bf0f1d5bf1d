"""Defaults that changed: a run that began with the former ones goes on with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from striate.config import RunConfig, load_config
from striate.errors import StriateError

# By section. A config of before they came does not name them.
FORMER: dict[str, dict[str, Any]] = {
    "prune": {"scorer": "modality-block-influence", "compensate": "none"},
    "heal": {"lr": None},
}


def as_it_began(config: RunConfig, kept: Path, notify: Callable[[str], None] = lambda line: None) -> RunConfig:
    """Return `config`; what it leaves to a default that was another when the run began is as the run has it.

    Args:
        config: as it was asked for.
        kept: the run's own config; where there is none, or none that can be read, nothing is changed.
        notify: told in one line what stays as it was, where the run has any of it.
    """
    try:
        old = load_config(kept) if kept.is_file() else None
    except StriateError:
        old = None
    if old is None:
        return config
    changes: dict[str, Any] = {}
    told: list[str] = []
    for name, former in FORMER.items():
        asked, began = getattr(config, name), getattr(old, name)
        left = {
            key: value
            for key, value in former.items()
            if key not in asked.model_fields_set
            and (getattr(began, key) if key in began.model_fields_set else value) == value
        }
        changes[name] = asked.model_copy(update=left)
        told += [f"{name}.{key} stays {value}" for key, value in left.items()]
    if told and (config.prune.remove or config.heal.on):
        notify(f"{', '.join(told)}: the default when this run began")
    return config.model_copy(update=changes)
