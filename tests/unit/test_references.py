"""What each model is held against: a pruned model against the tuned one, never silently against something else."""

from __future__ import annotations

from typing import Any

import pytest

from striate.artifacts import Difference, Retention
from striate.cli.console import result_lines
from striate.config import parse_config
from striate.errors import ConfigError
from striate.pipeline.references import check_references, references_of

RAW: dict[str, Any] = {
    "model": {"path": "owner/m"},
    "data": {"train": ["d"]},
    "prune": {"remove": 1},
    "evaluate": {"packs": ["p"], "others": {"tuned all": "owner/all"}},
}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((), {"tuned": "start", "pruned": "tuned", "tuned all": "start"}),
        (("evaluate.baseline=tuned all",), {"start": "tuned all", "tuned": "tuned all", "pruned": "tuned"}),
        (("evaluate.baseline=tuned",), {"start": "tuned", "pruned": "tuned", "tuned all": "tuned"}),
        (("evaluate.baseline=pruned",), {"start": "pruned", "tuned": "pruned", "tuned all": "pruned"}),
        (("prune.when=before",), {"tuned": "start", "pruned": "start", "tuned all": "start"}),
        (
            ("prune.when=before", "evaluate.baseline=tuned all"),
            {"start": "tuned all", "tuned": "tuned all", "pruned": "start"},
        ),
        (("prune.remove=0",), {"tuned": "start", "tuned all": "start"}),
        (("evaluate.models=[start, pruned]",), {"pruned": "tuned", "tuned all": "start"}),
    ],
)
def test_what_models_are_held_against(settings: tuple[str, ...], expected: dict[str, str]) -> None:
    assert references_of(parse_config(RAW, settings)) == expected


@pytest.mark.parametrize("gate", ["visual>=99", "text>=9:pruned"])
def test_a_gate_that_means_a_pruned_model_needs_the_tuned_one(gate: str) -> None:
    settings = ["evaluate.models=[start, pruned]", f"evaluate.gate={gate}"]
    with pytest.raises(ConfigError) as caught:
        check_references(parse_config(RAW, settings))
    assert str(caught.value) == (
        f"gate {gate!r} holds pruned against tuned, which is not evaluated\n"
        "  allowed: evaluate.models with tuned, or a gate that does not mean pruned\n"
        "  next:    add tuned to evaluate.models, or name the model as in 'visual>=99:tuned'"
    )
    check_references(parse_config(RAW, [*settings, "evaluate.gate=text>=9:tuned all"]))
    check_references(parse_config(RAW, [f"evaluate.gate={gate}"]))
    # The start is nothing that a gate is about.
    check_references(parse_config(RAW, [*settings, "prune.remove=0", "evaluate.gate=text>=9"]))


def row(label: str, baseline: str, before: float, after: float) -> Difference:
    return Difference(
        label=label,
        baseline=baseline,
        pack="*",
        task="visual",
        kind="visual",
        metric="mean",
        n=300,
        baseline_score=before,
        score=after,
        difference=after - before,
        low=after - before - 0.05,
        high=after - before + 0.05,
        retention=100 * after / before,
    )


def test_lines_of_the_result_say_what_pruning_cost() -> None:
    rows = (row("tuned", "start", 0.43, 0.87), row("pruned", "start", 0.43, 0.707))
    held = (row("pruned", "tuned", 0.87, 0.707),)
    against = {"tuned": "start", "pruned": "tuned"}
    retention = Retention(baseline="start", repetitions=100, rows=rows, held=held, against=against)
    assert result_lines(retention) == [
        "each change with its 95% interval",
        "tuned   visual: start 43.0% -> 87.0%; +44.0 points [+39.0, +49.0], n = 300",
        "pruned  visual: tuned 87.0% -> 70.7%; -16.3 points [-21.3, -11.3], n = 300",
    ]
    for earlier in (retention.model_copy(update={"held": ()}), Retention(baseline="start", repetitions=100, rows=rows)):
        assert result_lines(earlier)[2:] == [
            "pruned  not compared with tuned, which was not evaluated: add tuned to evaluate.models"
        ]
    assert [(row.label, row.baseline) for row in retention.held_rows()] == [("tuned", "start"), ("pruned", "tuned")]
