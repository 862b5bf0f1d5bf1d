"""What tells the rows of a sweep's table apart: names of rows, settings, or numbers where these are too wide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from striate.artifacts import SweepRecord, SweptGroup
from striate.config.sweep_settings import as_yaml, short_names

NAME = ""
"""Stands among the settings for the names of rows."""


def columns(record: SweepRecord) -> dict[str, str]:
    """Return the settings that have a column in the table, and what each is called there; names of rows come first.

    What a row's name implies has no column: the legend tells it.
    """
    named = {NAME: "run"} if any(group.name for group in record.groups) else {}
    return named | _varied(record, implied=False)


def cells(group: SweptGroup, shown: Mapping[str, str]) -> list[str]:
    """Return what a group has in each of the columns `shown`."""
    return [group.name if name == NAME else _value(group, name) for name in shown]


def settings_told(group: SweptGroup, shown: Mapping[str, str]) -> str:
    """Return what a group changes, in a few words."""
    return f"{_changes(group, shown) or 'the base'}{'' if group.model == 'tuned' else f', {group.model}'}"


def names_told(record: SweepRecord) -> list[str]:
    """Return what the names of rows imply, those that imply something."""
    implied = _varied(record, implied=True)
    found = {}
    for group in record.groups:
        changes = _changes(group, implied) or ("" if group.settings else "the base")
        if group.name and changes:
            found[group.name] = f"{group.name}: {changes}"
    return list(found.values())


def numbered(record: SweepRecord) -> tuple[SweepRecord, list[str]]:
    """Return the record with numbers in the place of names, which imply all settings, and what each stands for."""
    shown, numbers, groups = columns(record), dict[str, str](), list[SweptGroup]()
    for group in record.groups:
        told = _changes(group, shown) or "the base"
        number = numbers.setdefault(told, str(len(numbers) + 1))
        groups.append(group.model_copy(update={"name": number}))
    lines = [f"{number}: {told}" for told, number in numbers.items()]
    return record.model_copy(update={"groups": tuple(groups)}), lines


def _varied(record: SweepRecord, *, implied: bool) -> dict[str, str]:
    """Return the settings that some group has and that the names of rows imply, or not, and what each is called."""
    names = [name for name in record.varied if any(name in group.settings for group in record.groups)]
    called = short_names(names)
    return {name: called[name] for name in names if _is_implied(name, record.groups) is implied}


def _is_implied(setting: str, groups: Sequence[SweptGroup]) -> bool:
    """Return whether the names of groups say what they have of a setting, and those without a name have none."""
    values: dict[str, set[str]] = {}
    for group in groups:
        values.setdefault(group.name, set()).add(_value(group, setting))
    return values.pop("", {""}) == {""} and all(len(found) == 1 for found in values.values())


def _value(group: SweptGroup, setting: str) -> str:
    return as_yaml(group.settings[setting]) if setting in group.settings else ""


def _changes(group: SweptGroup, shown: Mapping[str, str]) -> str:
    pairs = zip(shown.items(), cells(group, shown), strict=True)
    told = (value if name == NAME else f"{called} {value}" for (name, called), value in pairs if value)
    return ", ".join(told)
