"""The floor: which models are asked without their pictures, with what, and how what is kept above it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from striate.artifacts import EvalRecord, Prediction, Retention
from striate.cli.console import result_lines
from striate.cli.views.evaluation_tables import failing_lines
from striate.config import parse_config
from striate.errors import ArtifactError, ConfigError, DataError
from striate.models.io.card.card_facts import CardFacts
from striate.models.io.card.model_card import card_text
from striate.pipeline.references import floors_of
from striate.reporting.sections.gate_table import draw_gate
from striate.reporting.sections.retention import draw_retention
from striate.tasks.inference.without_pictures import without_pictures
from striate.tasks.packs.items import Item, Pack
from striate.tasks.scoring.compare import compare_predictions
from striate.tasks.scoring.gate import check_gate, hold_against, parse_gate

ALLOWED = "  allowed: evaluate.gate with evaluate.floor, which asks the models that others are held against once more\n"
RAW: dict[str, Any] = {
    "model": {"path": "owner/m"},
    "data": {"train": ["d"]},
    "prune": {"remove": 1},
    "evaluate": {"packs": ["p"], "others": {"tuned all": "owner/all"}},
}


def record(label: str) -> EvalRecord:
    return EvalRecord(
        label=label, model="m", tasks=(), visual=None, text=None, parameters=1, num_layers=1, seconds=0,
        peak_memory_gib=0,
    )  # fmt: skip


def answers(right: int, n: int = 100, task: str = "count", image: bool = True) -> list[Prediction]:
    """The first `right` of `n` items right."""
    return [
        Prediction(
            id=f"{task}{place}", pack="p", task=task, metric="exact", question="q",
            image=f"{task}{place}.png" if image else None, score=place < right,
        )
        for place in range(n)
    ]  # fmt: skip


def results(**right: int) -> dict[str, tuple[EvalRecord, Sequence[Prediction]]]:
    return {label: (record(label), [*answers(n), *answers(50, task="say", image=False)]) for label, n in right.items()}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((), []),
        (("evaluate.floor=true",), ["start", "tuned"]),
        (("evaluate.floor=true", "prune.remove=0"), ["start"]),
        (("evaluate.floor=true", "evaluate.baseline=tuned all"), ["tuned", "tuned all"]),
        # What is not evaluated is not asked either.
        (("evaluate.floor=true", "evaluate.models=[start, pruned]"), ["start"]),
    ],
)
def test_models_that_others_are_held_against_are_asked_without_pictures(
    settings: tuple[str, ...], expected: list[str]
) -> None:
    assert floors_of(parse_config(RAW, settings)) == expected


def test_grey_pictures_have_the_size_of_those_that_they_stand_for(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[274] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "b.jpg")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "on_its_side.jpg", exif=turned)
    names = ["a.png", "b.jpg", "on_its_side.jpg"]
    items = [Item(id=name, pack="p", task="t", metric="exact", image=tmp_path / name) for name in names]
    many = Item(id="m", pack="p", task="t", metric="exact", image=items[0].image, more_images=items[2].images)
    with without_pictures([*items, many, Item(id="n", pack="p", task="t", metric="exact")]) as shown:
        first, second, third = (item.images[0] for item in shown[:3])
        assert first == second != third
        assert (shown[3].images, shown[4].images) == ((first, third), ())
        assert [Image.open(path).size for path in (first, third)] == [(30, 20), (20, 30)]
        assert Image.open(first).convert("RGB").getcolors() == [(600, (128, 128, 128))]
    assert not first.exists()
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"sample 'a\.png': can't read picture"), without_pictures(items):
        pass


def test_rows_of_tasks_with_pictures_tell_what_is_kept_above_the_floor() -> None:
    found = results(start=80, tuned=75)
    rows = compare_predictions(found["start"], found["tuned"], 200, 0, answers(30))
    by_task = {row.task: row for row in rows}
    for name in ("count", "visual"):
        assert (by_task[name].floor, by_task[name].above_floor) == (pytest.approx(0.3), pytest.approx(90))
        assert by_task[name].retention == pytest.approx(93.75)
    assert {by_task[name].floor for name in ("say", "text")} == {None}
    assert {row.floor for row in compare_predictions(found["start"], found["tuned"], 200, 0)} == {None}


@pytest.mark.parametrize("floor", [answers(30, 99), answers(30, 101)])
def test_a_floor_of_other_items_is_refused(floor: list[Prediction]) -> None:
    found = results(start=80, tuned=75)
    with pytest.raises(ArtifactError) as caught:
        compare_predictions(found["start"], found["tuned"], 200, 0, floor)
    assert str(caught.value) == (
        "'start' did not answer the same items with and without their pictures\n"
        "  allowed: two evaluations with the same packs and the same limit\n"
        "  next:    run `striate evaluate --overwrite`"
    )


def test_a_gate_may_be_about_what_lies_above_the_floor() -> None:
    gate = "visual>=90,visual_above_floor>=95,p/count_above_floor>=80:pruned"
    assert [(one.scope, one.floor, one.label) for one in parse_gate(gate)] == [
        ("visual", False, None),
        ("visual", True, None),
        ("p/count", True, "pruned"),
    ]
    found = hold_against(
        gate, "start", results(start=80, tuned=75, pruned=70), 200, 0,
        references={"pruned": "tuned"}, floors={"start": answers(30), "tuned": answers(40)},
    )  # fmt: skip
    told = [(row.what, row.label, row.against, round(row.retention or 0, 2), row.passed) for row in found.rows]
    assert told == [
        ("visual", "tuned", "start", 93.75, True),
        ("visual", "pruned", "tuned", 93.33, True),
        ("visual above the floor", "tuned", "start", 90.0, False),
        ("visual above the floor", "pruned", "tuned", 85.71, False),
        ("p/count above the floor", "pruned", "tuned", 85.71, True),
    ]
    assert failing_lines(found)[0].startswith(
        "gate: tuned keeps 90.0% of start in visual above the floor, 95% is asked; "
    )
    assert "tuned: visual_above_floor&gt;=95, keeps 90.0% of start above its floor, 95% interval" in str(
        draw_gate(found)
    )


def test_where_pictures_give_nothing_such_a_gate_fails_and_says_why() -> None:
    found = hold_against(
        "visual_above_floor>=95", "start", results(start=50, tuned=50), 200, 0, floors={"start": answers(49)}
    )
    why = "the score that is held against is not clearly above its floor"
    assert failing_lines(found) == [
        f"gate: tuned keeps no measurable share of start in visual above the floor, 95% is asked; no: {why}"
    ]
    assert f"no retention: {why}" in str(draw_gate(found))


def item(kind: str, task: str) -> Item:
    picture = Path("1.png") if kind == "visual" else None
    return Item(id=task, pack="p", task=task, metric="exact", question="?", answers=("x",), image=picture)


@pytest.mark.parametrize(
    ("gate", "setting", "floor", "text"),
    [
        (
            "visual_above_floor>=9",
            "evaluate.gate",
            False,
            "gate 'visual_above_floor>=9': no model is asked without its pictures, so that there is no floor\n"
            f"{ALLOWED}"
            "  next:    set evaluate.floor=true",
        ),
        (
            "visual_above_floor>=9",
            "prune.until",
            False,
            "gate 'visual_above_floor>=9': no model is asked without its pictures, so that there is no floor\n"
            f"{ALLOWED}"
            "  next:    leave _above_floor out of prune.until",
        ),
        (
            "p_above_floor>=9",
            "evaluate.gate",
            True,
            "gate 'p_above_floor>=9': p has tasks without a picture, which have no floor\n"
            "  allowed: visual_above_floor, or a pack or task whose items all have one\n"
            "  next:    name such a scope",
        ),
    ],
)
def test_gates_above_a_floor_that_is_not_there_are_refused(gate: str, setting: str, floor: bool, text: str) -> None:
    packs = [Pack("p", Path("p"), (item("visual", "count"), item("text", "say")))]
    with pytest.raises(ConfigError) as caught:
        check_gate(gate, packs, ["start", "tuned"], "start", setting, floor=floor)
    assert str(caught.value) == text
    check_gate("visual_above_floor>=9,p/count_above_floor>=9", packs, ["start", "tuned"], "start", floor=True)


def test_console_page_and_card_tell_the_floor() -> None:
    found = results(start=80, tuned=75)
    seen, blind = (tuple(compare_predictions(found["start"], found["tuned"], 200, 0, answers(n))) for n in (30, 79))
    retention = Retention(baseline="start", repetitions=200, rows=seen, against={"tuned": "start"})
    (line,) = [line for line in result_lines(retention) if "floor" in line]
    assert line.startswith("tuned   visual above the floor: 90.0% of start kept [7")
    assert line.endswith("; start without pictures 30.0%, n = 100")
    (line,) = [line for line in result_lines(retention.model_copy(update={"rows": blind})) if "floor" in line]
    assert line == (
        "tuned   visual above the floor: can't be told: the score that is held against is not clearly above its floor"
        " (start without pictures 79.0%)"
    )
    without = tuple(compare_predictions(found["start"], found["tuned"], 200, 0))
    page, plain = str(draw_retention(seen)), str(draw_retention(without))
    assert "above the floor" in page
    assert "90.0% (7" in page
    assert (page.count("<table>"), plain.count("<table>")) == (4, 2), "floors have tables of their own"
    assert "floor" not in plain
    facts = CardFacts("owner/m", "", None, evaluation=record("tuned"), differences=seen)
    assert "| retention | 95% interval | its floor | above the floor | 95% interval |" in card_text(facts, "checkpoint")
    assert "| 30.0 | 90.0% | 7" in card_text(facts, "checkpoint")
    bare = replace(facts, differences=without)
    assert "floor" not in card_text(bare, "checkpoint")
