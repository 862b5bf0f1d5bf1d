"""`prune.until`: remove as many layers as a gate bears, by bisection over kept trials."""

from __future__ import annotations

from collections.abc import Callable

from striate.artifacts import GateRow, UntilRecord, UntilTrial
from striate.config import BESIDE
from striate.errors import ConfigError
from striate.pipeline.trials.prune_trials import PruneTrials, Result, label_of
from striate.pipeline.trials.until_gate import WHOLE
from striate.pruning.largest_count import largest_count
from striate.tasks.scoring.gate import hold_against


def find_count(trials: PruneTrials, tuned: Callable[[], Result]) -> UntilRecord:
    """Return how many layers `prune.until` bears, of at most `trials.most`, and every trial that showed it.

    Packs of its own are asked where the run has some. The tuned model bears the gate by definition. Each number of
    layers is held against it on the same items; a condition is met when the retention itself reaches its bound, as in
    `evaluate.gate`. See `largest_count` for what is assumed.

    Args:
        trials: of the run; from now on with the packs that are asked.
        tuned: returns record and answers of the tuned model on the test packs.

    Raises:
        ConfigError: no layer may go, and layers next to removed ones were to be healed.
    """
    config, held_out = trials.run.config, bool(trials.keys.inputs.until_packs)
    gate, healed = config.prune.until or "", config.heals
    tried: list[UntilTrial] = []
    if held_out:
        trials.packs, trials.asked = trials.keys.read_until, trials.keys.asked(until=True)
        whole = trials.result(0)
    else:
        whole = tuned()
        trials.run.progress.say(
            "prune: prune.until asks the test packs themselves, so that the figures of the evaluation are a little too"
            " good: name others in prune.until_packs"
        )

    def borne(count: int) -> bool:
        result, label = trials.result(count, healed), label_of(count, healed)
        answers = {WHOLE: whole, label: result}
        rows = hold_against(gate, WHOLE, answers, config.evaluate.bootstrap, config.seed).rows
        passed = all(row.passed for row in rows)
        tried.append(UntilTrial(count=count, removed=trials.removed(count), passed=passed, rows=rows))
        trials.run.progress.say(f"prune: {label}: {'; '.join(map(told_row, rows))}")
        return passed

    count = largest_count(trials.most, borne)
    refused = next((trial for trial in tried if trial.count == count + 1), None)
    record = UntilRecord(
        gate=gate,
        packs=tuple(pack.name for pack in trials.packs()),
        held_out=held_out,
        healed=healed,
        most=trials.most,
        count=count,
        stopped_by=tuple(row.condition for row in refused.rows if not row.passed) if refused else (),
        trials=tuple(tried),
    )
    trials.run.progress.say(f"prune: {told_until(record)}")
    if healed and not count and config.heal.region == BESIDE:
        raise ConfigError(
            f"prune.until {gate!r} bears no layer less, and heal.region beside heals the layers next to removed ones",
            "a bound that a smaller model meets, or other layers to heal",
            "lower the bound, or set heal.region=region",
        )
    return record


def told_until(record: UntilRecord) -> str:
    """Return how many layers the gate bears, and what stopped it, in one line."""
    gate, refused = record.gate, next((trial for trial in record.trials if trial.count == record.count + 1), None)
    if refused is None:
        return f"{gate} bears {_layers(record.count)}, the most that prune.remove allows"
    why = "; ".join(told_row(row) for row in refused.rows if not row.passed)
    if not record.count:
        healing = ", and healing trains the tuned model as it is" if record.healed else ""
        return f"{gate} bears no layer less, and none is removed{healing}: with one removed, {why}"
    return f"{gate} bears {_layers(record.count)}; with {refused.count} removed, {why}"


def _layers(count: int) -> str:
    return f"{count} layer{'' if count == 1 else 's'}"


def told_row(row: GateRow) -> str:
    """Return what a model keeps in one scope, with its interval, and whether that is enough."""
    kept = "no measurable share" if row.retention is None else f"{row.retention:.1f}%"
    reach = (
        f"no interval: {row.no_interval}" if row.low is None or row.high is None else f"{row.low:.1f} to {row.high:.1f}"
    )
    return f"{row.scope} {kept} ({reach}), {'kept' if row.passed else f'{row.threshold:g}% is asked'}"
