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


def began_with(kept: Path) -> RunConfig:
    """Return the config that a run keeps; what it does not name, as it came later, has the former default.

    Raises:
        ConfigError: it can't be read.
    """
    config = load_config(kept)
    return _changed(config, lambda name, key, former: key not in getattr(config, name).model_fields_set)


def as_it_began(config: RunConfig, kept: Path, notify: Callable[[str], None] = lambda line: None) -> RunConfig:
    """Return `config`; what it leaves to a default that was another when the run began is as the run has it.

    Args:
        config: as it was asked for.
        kept: the run's own config; where there is none, or none that can be read, nothing is changed.
        notify: told in one line what stays as it was, where the run has any of it.
    """
    try:
        began = began_with(kept) if kept.is_file() else None
    except StriateError:
        began = None
    if began is None:
        return config
    told: list[str] = []

    def stays(name: str, key: str, former: Any) -> bool:
        left = key not in getattr(config, name).model_fields_set and getattr(getattr(began, name), key) == former
        told.extend([f"{name}.{key} stays {former}"] if left else [])
        return left

    found = _changed(config, stays)
    if told and (config.prune.remove or config.heal.on):
        notify(f"{', '.join(told)}: the default when this run began")
    return found


def _changed(config: RunConfig, where: Callable[[str, str, Any], bool]) -> RunConfig:
    """Return `config` with former defaults, in those settings of `FORMER` for which `where` says so."""
    changes = {
        name: getattr(config, name).model_copy(
            update={key: former for key, former in values.items() if where(name, key, former)}
        )
        for name, values in FORMER.items()
    }
    return config.model_copy(update=changes)
