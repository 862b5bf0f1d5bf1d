"""Reads what a harness returns: scores, task versions and per-item records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """A harness's figures by task, its versions of the tasks, and its own records of every item by task."""

    figures: dict[str, dict[str, float]]
    versions: dict[str, str]
    samples: dict[str, list[dict[str, Any]]]


def outcome_of(results: dict[str, Any]) -> Outcome:
    """Return what `simple_evaluate` of either harness returned."""
    versions = {name: str(version) for name, version in results.get("versions", {}).items()}
    return Outcome(figures_of(results["results"]), versions, results["samples"])


def figures_of(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the numbers of a harness's results; a metric's name has its filter after a comma unless that is `none`."""
    return {
        task: {
            name.removesuffix(",none"): float(value)
            for name, value in figures.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "sample_len"
        }
        for task, figures in results.items()
    }
