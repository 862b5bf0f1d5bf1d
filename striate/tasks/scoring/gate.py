"""The gate: what tuned and pruned models must keep of the baseline, and whether the sample can tell. No torch."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from striate.artifacts import Difference, EvalRecord, GateResult, GateRow, Prediction
from striate.errors import ConfigError, did_you_mean
from striate.tasks.packs.items import Pack
from striate.tasks.scoring.compare import KINDS, MACRO, compare_scope, in_scope, task_key

Results = Mapping[str, tuple[EvalRecord, Sequence[Prediction]]]
FORM = re.compile(r"\s*(?P<scope>[^<>=]+?)\s*>=\s*(?P<least>\d+(?:\.\d+)?)\s*%?\s*(?::\s*(?P<label>[^,]+?)\s*)?")
ALLOWED = "SCOPE>=PERCENT or SCOPE>=PERCENT:MODEL, with commas between; SCOPE is visual, text, PACK or PACK/TASK"
EXAMPLE = "for example --gate 'visual>=99,text>=99.5'"


@dataclass(frozen=True)
class Condition:
    """One condition: at least `least` % of the baseline in `scope`, of every model or of the one called `label`."""

    text: str
    scope: str
    least: float
    label: str | None = None

    @property
    def place(self) -> tuple[str, str]:
        """The pack and task that the scope means; `*` stands for all."""
        if self.scope in KINDS:
            return MACRO, self.scope
        pack, _, task = self.scope.partition("/")
        return pack, task or MACRO


def parse_gate(text: str) -> tuple[Condition, ...]:
    """Return the conditions of a gate such as `visual>=99,text>=99.5,nlvr/count>=95:pruned`.

    Raises:
        ConfigError: a part that is no condition, or that is there twice; the text shows it and an example.
    """
    conditions = tuple(_condition(part, text) for part in text.split(","))
    seen = [(one.scope, one.label) for one in conditions]
    repeated = next((one for one, key in zip(conditions, seen, strict=True) if seen.count(key) > 1), None)
    if repeated:
        raise ConfigError(f"gate {text!r}: {repeated.scope!r} is there twice", ALLOWED, "keep one of the two")
    return conditions


def check_scopes(conditions: Sequence[Condition], tasks: Sequence[tuple[str, str]], labels: Sequence[str]) -> None:
    """Return if every condition names something that is measured: `tasks` are pairs of pack and task.

    Raises:
        ConfigError: an unknown pack, task or model, with the closest known one.
    """
    packs = list(dict.fromkeys(pack for pack, _ in tasks))
    known = [*KINDS, *packs, *dict.fromkeys(f"{pack}/{task}" for pack, task in tasks)]
    for one in conditions:
        if one.scope not in known:
            hint = did_you_mean(one.scope, known)
            raise ConfigError(f"gate {one.text!r}: nothing called {one.scope!r} is measured", ", ".join(known), hint)
        if one.label is not None and one.label not in labels:
            hint = did_you_mean(one.label, labels)
            raise ConfigError(f"gate {one.text!r}: no model is called {one.label!r}", ", ".join(labels), hint)


def check_gate(gate: str, packs: Iterable[Pack], labels: Sequence[str]) -> None:
    """Return if every condition of `gate` can be held against what will be asked: before anything is.

    Raises:
        ConfigError: no gate, an unknown pack, task or model, or a scope without shares of right answers.
    """
    conditions = parse_gate(gate)
    keys = dict.fromkeys(task_key(item) for pack in packs for item in pack.items)
    tasks = [(pack, task) for pack, task, *_ in keys]
    check_scopes(conditions, tasks, labels)
    for one in conditions:
        if not in_scope(keys, one.place):
            raise _no_shares(one, tasks)


def hold_against(
    gate: str, baseline: str, results: Results, repetitions: int, seed: int, *, only: Sequence[str] | None = None
) -> GateResult:
    """Return what the gate says of every model but the baseline, a row a condition and model.

    A condition is met when the retention itself reaches its threshold. Whether the sample is large enough to tell is
    said apart: `resolvable` when the whole 95% interval lies on one side of the threshold. `needed_n` is the number
    of items at which it would, the half-width of an interval falling with the root of n.

    Args:
        gate: the conditions, as `parse_gate` reads them.
        baseline: label of the model that is held against.
        results: each model's record and predictions, by label.
        repetitions: bootstrap samples.
        seed: of the bootstrap.
        only: labels to hold against the conditions that name no model; all but the baseline if left out.

    Raises:
        ConfigError: a condition names something that was not measured.
        ArtifactError: two models did not answer the same items.
    """
    conditions = parse_gate(gate)
    tasks = [(item.pack, item.task) for item in results[baseline][1]]
    check_scopes(conditions, tasks, list(results))
    others = [label for label in results if label != baseline and (only is None or label in only)]
    rows = []
    for one in conditions:
        for label in others if one.label is None else [one.label]:
            found = compare_scope(results[baseline], results[label], one.place, repetitions, seed)
            if found is None:
                raise _no_shares(one, tasks)
            rows.append(_row(one, found))
    return GateResult(gate=gate, baseline=baseline, rows=tuple(rows))


def _no_shares(one: Condition, tasks: Sequence[tuple[str, str]]) -> ConfigError:
    return ConfigError(
        f"gate {one.text!r}: no {one.scope} task is scored by a share of right answers",
        "a scope with such tasks; perplexity has rows of its own, as PACK/TASK",
        f"name one of {', '.join(dict.fromkeys(f'{pack}/{task}' for pack, task in tasks))}",
    )


def _condition(part: str, text: str) -> Condition:
    found = FORM.fullmatch(part)
    if not found:
        given = (
            f"gate {text!r}: {part.strip()!r} is no condition" if part.strip() else f"gate {text!r} has an empty part"
        )
        raise ConfigError(given, ALLOWED, EXAMPLE)
    return Condition(part.strip(), found["scope"], float(found["least"]), found["label"])


def _row(one: Condition, found: Difference) -> GateRow:
    low, high = found.retention_low, found.retention_high
    passed = found.retention is not None and found.retention >= one.least
    resolvable = low is not None and high is not None and (low >= one.least if passed else high < one.least)
    return GateRow(
        condition=one.text,
        label=found.label,
        scope=one.scope,
        threshold=one.least,
        retention=found.retention,
        low=low,
        high=high,
        n=found.n,
        clusters=found.clusters,
        passed=passed,
        resolvable=resolvable,
        needed_n=_needed(one.least, found),
    )


def _needed(least: float, found: Difference) -> int | None:
    """Return how many items would put the interval on one side of `least`; None where that can't be forecast."""
    if found.retention is None or found.retention_low is None or found.retention_high is None:
        return None
    margin = abs(found.retention - least)
    above = found.retention >= least
    half = found.retention - found.retention_low if above else found.retention_high - found.retention
    return math.ceil(found.n * (half / margin) ** 2) if margin > 1e-9 else None
