"""The conditions of `prune.until`, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from striate.errors import ConfigError
from striate.tasks.packs.items import Pack
from striate.tasks.scoring.gate import Condition, check_gate, parse_gate

WHOLE = "tuned"


def parse_until(gate: str) -> tuple[Condition, ...]:
    """Return the conditions of `prune.until`, which name no model.

    Raises:
        ConfigError: the text is no gate, or names a model.
    """
    conditions = parse_gate(gate)
    for condition in conditions:
        if condition.label is not None:
            raise ConfigError(
                f"prune.until {condition.text!r} names a model",
                "SCOPE>=PERCENT with commas between: it is the smaller model, against the tuned one",
                f"write {condition.scope}>={condition.least:g}",
            )
    return conditions


def check_until(gate: str, packs: Sequence[Pack]) -> None:
    """Check that every condition of `prune.until` can be held against what will be asked: before anything is.

    Raises:
        ConfigError: as `parse_until`; an unknown pack or task, or a scope without shares of right answers.
    """
    parse_until(gate)
    check_gate(gate, packs, [WHOLE, "smaller"], WHOLE, "prune.until")
