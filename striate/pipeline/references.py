"""What each model of a run is held against: a pruned model against the tuned one, others against the baseline."""

from __future__ import annotations

from striate.config import RunConfig
from striate.errors import ConfigError
from striate.pipeline.model_origins import origin_of
from striate.pipeline.preflight import labels_of
from striate.tasks.scoring.gate import parse_gate

# The run's own models that lack layers, healed or not.
CUT = ("pruned", "unhealed")


def references_of(config: RunConfig) -> dict[str, str]:
    """Return what each evaluated model but the baseline is held against, by label.

    A pruned model tells what pruning cost when it is held against the model that was pruned, whatever the baseline is.
    """
    baseline = config.evaluate.baseline
    others = [label for label in labels_of(config) if label != baseline]
    return {label: origin_of(config, "pruned") if label in CUT else baseline for label in others}


def floors_of(config: RunConfig) -> list[str]:
    """Return which models are asked without their pictures: those that others are held against."""
    return [label for label in labels_of(config) if config.evaluate.floor and label in references_of(config).values()]


def check_references(config: RunConfig) -> None:
    """Check that every model that the gate means can be held against what it is to be held against.

    Raises:
        ConfigError: the gate can't be read, or a model was left out of `evaluate.models`.
    """
    evaluated, references = labels_of(config), references_of(config)
    for condition in parse_gate(config.evaluate.gate or ""):
        for label in condition.models(references, config.evaluate.baseline):
            reference = references.get(label, config.evaluate.baseline)
            if reference not in evaluated:
                raise ConfigError(
                    f"gate {condition.text!r} holds {label} against {reference}, which is not evaluated",
                    f"evaluate.models with {reference}, or a gate that does not mean {label}",
                    f"add {reference} to evaluate.models, or name the model as in 'visual>=99:tuned'",
                )
