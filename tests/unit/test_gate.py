"""The gate: its grammar, its verdicts by hand, and whether a sample can tell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from striate.artifacts import EvalRecord, GateResult, GateRow, Prediction
from striate.cli.views.evaluation_tables import failing_lines, gate_table, unsure_lines
from striate.errors import ConfigError
from striate.reporting.sections.gate_table import draw_gate
from striate.tasks.packs.items import Item, Pack
from striate.tasks.scoring.gate import Condition, check_gate, check_scopes, hold_against, parse_gate

ALLOWED = (
    "  allowed: SCOPE>=PERCENT or SCOPE>=PERCENT:MODEL, with commas between; SCOPE is visual, text, PACK or PACK/TASK\n"
    "  next:    for example --gate 'visual>=99,text>=99.5'"
)


def record(label: str) -> EvalRecord:
    return EvalRecord(
        label=label,
        model="m",
        tasks=(),
        visual=None,
        text=None,
        parameters=1,
        num_layers=1,
        seconds=0,
        peak_memory_gib=0,
    )


def answers(right: Sequence[int], pack: str = "p", task: str = "count", image: bool = True) -> list[Prediction]:
    return [
        Prediction(
            id=str(index),
            pack=pack,
            task=task,
            metric="exact",
            question="q",
            image=f"{pack}{index}.png" if image else None,
            score=score,
        )
        for index, score in enumerate(right)
    ]


def test_conditions_are_read_with_their_model() -> None:
    assert parse_gate(" visual >= 99, text>=99.5%,nlvr/count>=95:tuned all") == (
        Condition("visual >= 99", "visual", 99.0),
        Condition("text>=99.5%", "text", 99.5),
        Condition("nlvr/count>=95:tuned all", "nlvr/count", 95.0, "tuned all"),
    )
    places = [one.place for one in parse_gate("visual>=1,nlvr>=1,nlvr/count>=1")]
    assert places == [("*", "visual"), ("nlvr", "*"), ("nlvr", "count")]


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("visual>99", "gate 'visual>99': 'visual>99' is no condition"),
        ("visual>=many", "gate 'visual>=many': 'visual>=many' is no condition"),
        ("99", "gate '99': '99' is no condition"),
        ("visual>=99,", "gate 'visual>=99,' has an empty part"),
        (">=99", "gate '>=99': '>=99' is no condition"),
    ],
)
def test_what_is_no_gate_is_refused_with_an_example(text: str, given: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_gate(text)
    assert str(caught.value) == f"{given}\n{ALLOWED}"


@pytest.mark.parametrize(
    ("least", "holds"), [("0", "always"), ("0.0", "always"), ("1001", "never"), ("9" * 400, "never")]
)
def test_a_gate_that_can_not_fail_or_never_holds_is_refused(least: str, holds: str) -> None:
    with pytest.raises(ConfigError, match=f"holds {holds}\n  allowed: a share from over 0 to 1000 %"):
        parse_gate(f"visual>={least}")


def test_the_baseline_is_not_held_against_itself() -> None:
    item = Item(id="1", pack="p", task="t", metric="exact", question="?", answers=("x",))
    pack = Pack("p", Path("p"), (item,))
    check_gate("text>=99:tuned", [pack], ["start", "tuned"], "start")
    with pytest.raises(ConfigError, match="'text>=99:start' holds the baseline against itself\n  allowed: tuned"):
        check_gate("text>=99:start", [pack], ["start", "tuned"], "start")


def test_a_scope_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="'text' is there twice"):
        parse_gate("text>=99,text>=98")
    assert len(parse_gate("text>=99:a,text>=98:b")) == 2


def test_scopes_and_models_must_be_there() -> None:
    tasks, labels = [("nlvr", "count"), ("nlvr", "spatial")], ["start", "tuned"]
    check_scopes(parse_gate("visual>=9,nlvr>=9,nlvr/count>=9:tuned"), tasks, labels)
    with pytest.raises(ConfigError) as caught:
        check_scopes(parse_gate("nlvr/cuont>=9"), tasks, labels)
    assert str(caught.value) == (
        "gate 'nlvr/cuont>=9': nothing called 'nlvr/cuont' is measured\n"
        "  allowed: visual, text, nlvr, nlvr/count, nlvr/spatial\n"
        "  next:    did you mean 'nlvr/count'? fix evaluate.gate, or --gate"
    )
    with pytest.raises(ConfigError, match="no model is called 'pruend'"):
        check_scopes(parse_gate("visual>=9:pruend"), tasks, labels)


def test_a_drop_that_the_sample_can_tell_fails_for_sure() -> None:
    results = {
        "start": (record("start"), answers([1] * 200)),
        "tuned": (record("tuned"), answers([1] * 100 + [0] * 100)),
    }
    gate = hold_against("visual>=99", "start", results, 500, 0)
    (row,) = gate.rows
    assert (row.label, row.retention, row.passed, row.resolvable) == ("tuned", 50, False, True)
    assert row.high is not None
    assert row.high < 60
    assert not gate.passed
    assert failing_lines(gate) == ["gate: tuned keeps 50.0% of start in visual, 99% is asked; yes, n = 200"]


def test_a_small_sample_passes_but_can_not_tell() -> None:
    results = {
        "start": (record("start"), answers([1] * 36 + [0] * 4)),
        "tuned": (record("tuned"), answers([0] + [1] * 36 + [0] * 3)),
    }
    (row,) = hold_against("p/count>=99", "start", results, 500, 0).rows
    assert (row.retention, row.passed, row.resolvable, row.n) == (100, True, False, 40)
    assert row.low is not None
    assert row.high is not None
    # Of one per cent, the half-width has to be 1.96 / (1.96 + 0.84) of it.
    assert str(row.needed_n).rstrip("0") in (str(row.needed_n)[:1], str(row.needed_n)[:2])
    assert (row.effect, row.needed_n) == (1, pytest.approx(40 * (1.4294 * (row.high - row.low) / 2) ** 2, rel=0.05))


@pytest.mark.parametrize(("condition", "effect", "stated"), [("90", None, 10), ("90", 2.5, 2.5), ("100", None, None)])
def test_the_sample_that_a_gate_needs_follows_from_a_stated_effect(
    condition: str, effect: float | None, stated: float | None
) -> None:
    results = {
        "start": (record("start"), answers([1] * 90 + [0] * 10)),
        "tuned": (record("tuned"), answers([0] * 3 + [1] * 87 + [0] * 10)),
    }
    (row,) = hold_against(f"visual>={condition}", "start", results, 500, 0, effect=effect).rows
    assert row.effect == stated
    if stated is None:
        assert row.needed_n is None
        return
    assert row.low is not None
    assert row.high is not None
    assert row.needed_n == pytest.approx(100 * (1.4294 * (row.high - row.low) / 2 / stated) ** 2, rel=0.06)


def test_a_sample_that_is_too_small_says_what_one_of_its_size_would_tell() -> None:
    row = GateRow(
        condition="visual>=98", label="tuned", scope="visual", threshold=98, retention=98, low=90, high=105, n=100,
        passed=True, resolvable=False, needed_n=12_000, effect=2,
    )  # fmt: skip
    earlier = row.model_copy(update={"effect": None})
    gates = [GateResult(gate="g", baseline="start", rows=(one,)) for one in (row, earlier)]
    begin = "can the sample tell tuned in visual? no: 98% lies inside the 95% interval of n = 100; about 12,000 items "
    assert [line for gate in gates for line in unsure_lines(gate)] == [
        f"{begin}tell a true 100% from it, 4 times in 5",
        f"{begin}would",
    ]
    assert [next(iter(gate_table(gate).columns[-1].cells)) for gate in gates] == ["no", "no"]
    page = str(draw_gate(GateResult(gate="g", baseline="start", rows=(row,))))
    assert "about 12\u202f000 items tell a true 100% from 98%, 4 times in 5." in page


def test_every_model_is_held_against_it_unless_one_is_named() -> None:
    results = {label: (record(label), answers([1, 1, 0])) for label in ("start", "tuned", "pruned")}
    rows = hold_against("visual>=90,p>=90:pruned", "start", results, 200, 0).rows
    assert [(row.scope, row.label) for row in rows] == [
        ("visual", "tuned"),
        ("visual", "pruned"),
        ("p", "pruned"),
    ]


def test_the_start_is_meant_only_where_it_is_named() -> None:
    right = {"tuned all": [1] * 20, "start": [0] * 20, "tuned": [1] * 20, "pruned": [1] * 20}
    results = {label: (record(label), answers(scores)) for label, scores in right.items()}
    gate = hold_against("visual>=90", "tuned all", results, 200, 0, references={"pruned": "tuned"})
    assert [(row.label, row.against) for row in gate.rows] == [("tuned", "tuned all"), ("pruned", "tuned")]
    assert gate.passed
    (named,) = hold_against("visual>=90:start", "tuned all", results, 200, 0).rows
    assert (named.label, named.passed) == ("start", False)


def test_a_gate_that_means_no_model_is_refused() -> None:
    pack = Pack("p", Path("p"), (Item(id="1", pack="p", task="t", metric="exact", question="?", answers=("x",)),))
    check_gate("text>=99:start", [pack], ["start", "tuned all"], "tuned all")
    with pytest.raises(ConfigError) as caught:
        check_gate("text>=99", [pack], ["start", "tuned all"], "tuned all")
    assert str(caught.value) == (
        "gate 'text>=99' means no model: only start and tuned all are evaluated\n"
        "  allowed: a model beside the baseline and the start, or one that is named\n"
        "  next:    evaluate another model, or write text>=99:MODEL"
    )


def test_a_model_is_held_against_the_one_that_it_was_made_from() -> None:
    right = {"start": 40, "tuned": 80, "pruned": 60}
    results = {label: (record(label), answers([1] * n + [0] * (100 - n))) for label, n in right.items()}
    gate = hold_against("visual>=90", "start", results, 200, 0, references={"tuned": "start", "pruned": "tuned"})
    assert [(row.label, row.against, row.retention) for row in gate.rows] == [
        ("tuned", "start", pytest.approx(200)),
        ("pruned", "tuned", pytest.approx(75)),
    ]
    assert [row.passed for row in gate.rows] == [True, False]
    (line,) = failing_lines(gate)
    assert line.startswith("gate: pruned keeps 75.0% of tuned in visual, 90% is asked; ")
    assert [list(column.cells) for column in gate_table(gate).columns][1:3] == [["tuned", "pruned"], ["start", "tuned"]]
    # What earlier versions wrote was held against the baseline.
    earlier = gate.model_copy(update={"rows": tuple(row.model_copy(update={"against": ""}) for row in gate.rows)})
    assert [earlier.reference(row) for row in earlier.rows] == ["start", "start"]


def test_a_pack_is_the_mean_of_its_tasks() -> None:
    start = answers([1, 1]) + answers([1, 1, 1, 1], task="read") + answers([1], pack="other")
    tuned = answers([1, 0]) + answers([1, 1, 1, 1], task="read") + answers([0], pack="other")
    results = {"start": (record("start"), start), "tuned": (record("tuned"), tuned)}
    rows = hold_against("p>=70,visual>=70,p/read>=100", "start", results, 200, 0).rows
    assert [row.retention for row in rows] == pytest.approx([75, 50, 100])
    assert [row.passed for row in rows] == [True, False, True]


def test_a_scope_without_shares_of_right_answers_is_refused() -> None:
    prose = [item.model_copy(update={"metric": "perplexity"}) for item in answers([2, 3], image=False)]
    results = {label: (record(label), prose) for label in ("start", "tuned")}
    with pytest.raises(ConfigError, match="no text task is scored by a share of right answers"):
        hold_against("text>=99", "start", results, 200, 0)
    (row,) = hold_against("p/count>=99", "start", results, 200, 0).rows
    assert row.retention == 100


def test_a_baseline_of_nothing_passes_nobody() -> None:
    results = {"start": (record("start"), answers([0, 0])), "tuned": (record("tuned"), answers([1, 1]))}
    (row,) = hold_against("visual>=99", "start", results, 200, 0).rows
    assert (row.retention, row.passed, row.resolvable, row.needed_n) == (None, False, False, None)


def test_two_pictures_with_many_questions_pass_but_never_for_sure() -> None:
    def asked(right: Sequence[int]) -> list[Prediction]:
        return [item.model_copy(update={"image": f"{int(item.id) % 2}.png"}) for item in answers(right)]

    results = {"start": (record("start"), asked([1, 0] * 50)), "tuned": (record("tuned"), asked([1, 1] * 50))}
    gate = hold_against("visual>=99,visual>=300:tuned", "start", results, 200, 0)
    first, second = gate.rows
    assert (first.passed, first.resolvable, first.low, first.needed_n, first.clusters) == (True, False, None, None, 2)
    assert failing_lines(gate) == [
        "gate: tuned keeps 200.0% of start in visual, 300% is asked; no: 2 independent pictures are too few"
    ]
    assert second.no_interval in str(draw_gate(gate))
    assert "keeps 200.0% of start, no 95% interval: 2 independent pictures are too few" in str(draw_gate(gate))
    assert unsure_lines(gate) == ["can the sample tell tuned in visual? no: 2 independent pictures are too few"]
    assert list(gate_table(gate).columns[-1].cells) == ["no", "no"]
