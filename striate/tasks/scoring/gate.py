"""The retention gate: conditions such as `visual>=99`, and whether the sample can tell. No torch."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from striate.artifacts import Difference, EvalRecord, GateResult, GateRow, Prediction
from striate.errors import ConfigError, did_you_mean
from striate.tasks.packs.items import Pack
from striate.tasks.scoring.compare import KINDS, MACRO, compare_scope, in_scope, task_key
from striate.tasks.scoring.intervals import POWER_NORMAL
from striate.tasks.scoring.picture_sample import NORMAL

Results = Mapping[str, tuple[EvalRecord, Sequence[Prediction]]]
FORM = re.compile(r"\s*(?P<scope>[^<>=]+?)\s*>=\s*(?P<least>\d+(?:\.\d+)?)\s*%?\s*(?::\s*(?P<label>[^,]+?)\s*)?")
ALLOWED = "SCOPE>=PERCENT or SCOPE>=PERCENT:MODEL, with commas between; SCOPE is visual, text, PACK or PACK/TASK"
ABOVE_FLOOR = "_above_floor"
"""What stands after a scope of which the retention above the floor is meant."""
# The model that the run began with, which no gate is about unless it is named.
START = "start"
# How often a sample of `needed_n` items tells the stated effect, and what that takes of a 95% interval's half-width
# (Cohen 1988, chapter 2).
_POWER_WIDTHS = (NORMAL + POWER_NORMAL) / NORMAL
# A baseline that is right in a tenth of its answers can be surpassed so far, and no further.
MOST_PERCENT = 1000
EXAMPLE = "for example --gate 'visual>=99,text>=99.5'"


@dataclass(frozen=True)
class Condition:
    """One condition: at least `least` % in `scope` of what all models, or the one called `label`, are held against.

    With `floor` it is of what lies above the floor.
    """

    text: str
    scope: str
    least: float
    label: str | None = None
    floor: bool = False

    @property
    def place(self) -> tuple[str, str]:
        """The pack and task that the scope means; `*` stands for all."""
        if self.scope in KINDS:
            return MACRO, self.scope
        pack, _, task = self.scope.partition("/")
        return pack, task or MACRO

    def models(self, labels: Iterable[str], baseline: str) -> list[str]:
        """Return which of the `labels` it means: the one that it names, else all but the baseline and the start."""
        return [self.label] if self.label else [label for label in labels if label not in (baseline, START)]


def parse_gate(text: str) -> tuple[Condition, ...]:
    """Return the conditions of a gate such as `visual>=99,text>=99.5,nlvr/count>=95:pruned`.

    Raises:
        ConfigError: a part that is no condition, or that is there twice; the text shows it and an example.
    """
    conditions = tuple(_condition(part, text) for part in text.split(","))
    seen = [(condition.scope, condition.label, condition.floor) for condition in conditions]
    repeated = next((condition for condition, key in zip(conditions, seen, strict=True) if seen.count(key) > 1), None)
    if repeated:
        raise ConfigError(f"gate {text!r}: {repeated.scope!r} is there twice", ALLOWED, "keep one of the two")
    return conditions


def check_scopes(
    conditions: Sequence[Condition],
    tasks: Sequence[tuple[str, str]],
    labels: Sequence[str],
    setting: str = "evaluate.gate",
) -> None:
    """Return if every condition of `setting` names something that is measured: `tasks` are pairs of pack and task.

    Raises:
        ConfigError: an unknown pack, task or model, with the closest known one.
    """
    packs = list(dict.fromkeys(pack for pack, _ in tasks))
    known = [*KINDS, *packs, *dict.fromkeys(f"{pack}/{task}" for pack, task in tasks)]
    for condition in conditions:
        if condition.scope not in known:
            hint = did_you_mean(condition.scope, known)
            given = f"gate {condition.text!r}: nothing called {condition.scope!r} is measured"
            raise ConfigError(given, ", ".join(known), f"{hint}fix {_named(setting)}")
        if condition.label is not None and condition.label not in labels:
            hint = did_you_mean(condition.label, labels)
            given = f"gate {condition.text!r}: no model is called {condition.label!r}"
            raise ConfigError(given, ", ".join(labels), f"{hint}fix {_named(setting)}")


def _named(setting: str) -> str:
    """Return how a person may have given `setting`: that of a run has a flag of `striate evaluate` too."""
    return f"{setting}, or --gate" if setting == "evaluate.gate" else setting


def check_gate(
    gate: str,
    packs: Iterable[Pack],
    labels: Sequence[str],
    baseline: str,
    setting: str = "evaluate.gate",
    *,
    floor: bool = False,
) -> None:
    """Return if every condition of `gate` can be held against what will be asked: before anything is.

    Raises:
        ConfigError: no gate, an unknown pack, task or model, or a scope without shares of right answers; one above the
            floor where models are not asked without their pictures (`floor`), or that has none.
    """
    conditions = parse_gate(gate)
    check_floor(conditions, setting, floor=floor)
    keys = dict.fromkeys(task_key(item) for pack in packs for item in pack.items)
    tasks = [(pack, task) for pack, task, *_ in keys]
    check_scopes(conditions, tasks, labels, setting)
    for condition in conditions:
        if condition.label == baseline:
            others = ", ".join(label for label in labels if label != baseline)
            given = f"gate {condition.text!r} holds the baseline against itself"
            raise ConfigError(given, others, "name another model")
        if not condition.models(labels, baseline):
            raise ConfigError(
                f"gate {condition.text!r} means no model: only {' and '.join(labels)} are evaluated",
                "a model beside the baseline and the start, or one that is named",
                f"evaluate another model, or write {condition.text}:MODEL",
            )
        if not in_scope(keys, condition.place):
            raise _no_shares(condition, tasks)
        if condition.floor and any(kind != "visual" for *_, kind in in_scope(keys, condition.place)):
            raise ConfigError(
                f"gate {condition.text!r}: {condition.scope} has tasks without a picture, which have no floor",
                f"visual{ABOVE_FLOOR}, or a pack or task whose items all have one",
                "name such a scope",
            )


def check_floor(conditions: Sequence[Condition], setting: str = "evaluate.gate", *, floor: bool) -> None:
    """Return if no condition is about what lies above the floor, or models are asked for it.

    Raises:
        ConfigError: one is, and they are not.
    """
    above = next((condition for condition in conditions if condition.floor), None)
    if above is None or floor:
        return
    raise ConfigError(
        f"gate {above.text!r}: no model is asked without its pictures, so that there is no floor",
        "evaluate.gate with evaluate.floor, which asks the models that others are held against once more",
        "set evaluate.floor=true" if setting == "evaluate.gate" else f"leave {ABOVE_FLOOR} out of {setting}",
    )


def hold_against(
    gate: str,
    baseline: str,
    results: Results,
    repetitions: int,
    seed: int,
    *,
    only: Sequence[str] | None = None,
    references: Mapping[str, str] | None = None,
    effect: float | None = None,
    floors: Mapping[str, Sequence[Prediction]] = MappingProxyType({}),
) -> GateResult:
    """Return what the gate says of every model but the baseline and the start, a row a condition and model.

    A condition is met when the retention itself reaches its threshold. Whether the sample is large enough to tell is
    said apart: `resolvable` when the whole 95% interval lies on one side of the threshold. `needed_n` is the number
    of items of which it would in 80% of repetitions where the true retention lies `effect` from the threshold, the
    half-width of an interval falling with the root of n. It does not follow from the retention that was measured:
    what a sample happens to show is no effect to plan for (Hoenig and Heisey 2001, The American Statistician 55,
    19-24).

    Args:
        gate: the conditions, as `parse_gate` reads them.
        baseline: label of the model that is held against.
        results: each model's record and predictions, by label.
        repetitions: draws of the bootstrap, of perplexity's interval.
        seed: of the draws.
        only: labels to hold against the conditions that name no model; all but the baseline if left out.
        references: by label, the model that another is held against in place of the baseline.
        effect: in points of retention; left out, from the threshold up to 100%.
        floors: by label, what a model that others are held against answered without pictures.

    Raises:
        ConfigError: a condition names something that was not measured.
        ArtifactError: two models did not answer the same items.
    """
    conditions = parse_gate(gate)
    tasks = [(item.pack, item.task) for item in results[baseline][1]]
    check_scopes(conditions, tasks, list(results))
    others = [label for label in results if label != baseline and (only is None or label in only)]
    rows = []
    for condition in conditions:
        for label in condition.models(others, baseline):
            reference = (references or {}).get(label, baseline)
            pair, floor = (results[reference], results[label]), floors.get(reference, ())
            difference = compare_scope(*pair, condition.place, repetitions, seed, floor if condition.floor else ())
            if difference is None:
                raise _no_shares(condition, tasks)
            rows.append(_row(condition, difference, effect))
    return GateResult(gate=gate, baseline=baseline, rows=tuple(rows))


def _no_shares(condition: Condition, tasks: Sequence[tuple[str, str]]) -> ConfigError:
    return ConfigError(
        f"gate {condition.text!r}: no {condition.scope} task is scored by a share of right answers",
        "a scope with such tasks; perplexity has rows of its own, as PACK/TASK",
        f"name one of {', '.join(dict.fromkeys(f'{pack}/{task}' for pack, task in tasks))}",
    )


def _condition(part: str, text: str) -> Condition:
    match = FORM.fullmatch(part)
    if not match:
        given = (
            f"gate {text!r}: {part.strip()!r} is no condition" if part.strip() else f"gate {text!r} has an empty part"
        )
        raise ConfigError(given, ALLOWED, EXAMPLE)
    least = float(match["least"])
    if not 0 < least <= MOST_PERCENT:
        given = f"gate {text!r}: {part.strip()!r} holds {'always' if least <= 0 else 'never'}"
        raise ConfigError(given, f"a share from over 0 to {MOST_PERCENT} %", EXAMPLE)
    scope = match["scope"].removesuffix(ABOVE_FLOOR)
    return Condition(part.strip(), scope, least, match["label"], floor=scope != match["scope"])


def _row(condition: Condition, compared: Difference, effect: float | None) -> GateRow:
    difference = compared.kept_above_floor if condition.floor else compared
    least, low, high = condition.least, difference.retention_low, difference.retention_high
    stated = effect or (100 - least if least < 100 else None)
    passed = difference.retention is not None and difference.retention >= least
    resolvable = low is not None and high is not None and (low >= least if passed else high < least)
    return GateRow(
        condition=condition.text,
        label=difference.label,
        scope=condition.scope,
        threshold=least,
        retention=difference.retention,
        low=low,
        high=high,
        n=difference.n,
        clusters=difference.clusters,
        passed=passed,
        resolvable=resolvable,
        needed_n=None if stated is None else _needed(stated, difference),
        effect=stated,
        no_interval=difference.no_interval,
        against=difference.baseline,
        above_floor=condition.floor,
    )


def _needed(effect: float, difference: Difference) -> int | None:
    """Return how many items tell `effect`, in points of retention, to two digits; None without an interval."""
    low, high = difference.retention_low, difference.retention_high
    if low is None or high is None:
        return None
    items = math.ceil(difference.n * (_POWER_WIDTHS * (high - low) / 2 / effect) ** 2)
    digit = 10 ** max(0, len(str(items)) - 2)
    return math.ceil(items / digit) * digit
