"""The curve of removed layers without a model: counts, bisection, advice, scores by form, CSV, table and page."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from striate.artifacts import (
    Curve,
    CurvePoint,
    CurveScore,
    Difference,
    EvalRecord,
    Kind,
    Prediction,
    Region,
    SpeedRecord,
    Spread,
    TrialSpeed,
    write_document,
)
from striate.cli.views.curve_table import curve_table
from striate.cli.views.narrow_tables import fitting
from striate.errors import ConfigError
from striate.pruning.curve_counts import curve_counts
from striate.pruning.curve_csv import curve_csv
from striate.pruning.largest_count import largest_count
from striate.pruning.recommendation import recommend
from striate.stages.report import report
from striate.tasks.scoring.answer_forms import scores_by_form
from striate.tasks.scoring.compare import task_scores


@given(st.integers(1, 200), st.data())
def test_bisection_finds_the_largest_number_that_is_borne_and_asks_none_twice(most: int, data: st.DataObject) -> None:
    largest, asked = data.draw(st.integers(0, most)), []

    def borne(count: int) -> bool:
        asked.append(count)
        return count <= largest

    assert largest_count(most, borne) == largest
    assert len(set(asked)) == len(asked) <= math.ceil(math.log2(most + 1))
    assert {count for count in (largest, largest + 1) if 1 <= count <= most} <= set(asked)


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_where_bearing_comes_and_goes_the_number_and_the_next_were_asked(borne: list[bool]) -> None:
    asked: dict[int, bool] = {}

    def ask(count: int) -> bool:
        return asked.setdefault(count, borne[count - 1])

    found = largest_count(len(borne), ask)
    assert found == 0 or asked[found]
    assert found == len(borne) or asked[found + 1] is False


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0:3", (0, 1, 2, 3)),
        ("2:4", (0, 2, 3, 4)),
        ("0:50%", (0, 1, 2, 3, 4, 5)),
        ("0:9:4", (0, 4, 8)),
        (" 10% : 30 % : 2 ", (0, 1, 3)),
    ],
)
def test_numbers_of_layers(text: str, expected: tuple[int, ...]) -> None:
    assert curve_counts(text, 10) == expected


@pytest.mark.parametrize("text", ["", "5", "0:5:0", "0:0", "4:2", "-1:3", "0:101%", "0:x", "0:50%:2:1"])
def test_what_is_no_curve_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="a curve of") as error:
        curve_counts(text, 10)
    assert "FROM:TO" in str(error.value)


def difference(kept: float, kind: Kind = "visual", low: float | None = None, high: float | None = None) -> Difference:
    return Difference(
        label="smaller",
        baseline="tuned",
        pack="*",
        task=kind,
        kind=kind,
        metric="mean",
        n=400,
        baseline_score=0.8,
        score=0.8 * kept / 100,
        difference=0.8 * (kept - 100) / 100,
        retention=kept,
        retention_low=kept - 0.8 if low is None else low,
        retention_high=kept + 0.7 if high is None else high,
    )


def speed(layers: int) -> SpeedRecord:
    seconds, tokens = (Spread(median=it, low=0.9 * it, high=1.1 * it) for it in (0.1 * layers, 60 / layers))
    return SpeedRecord(
        device="CPU, 1 threads",
        dtype="float32",
        num_layers=layers,
        prompts=1,
        prompt_tokens=700,
        image_tokens=196,
        new_tokens=64,
        repeats=5,
        prefill_seconds=seconds,
        decode_tokens_per_second=tokens,
        weights_gib=1,
        peak_memory_gib=2,
    )


def point(count: int, visual: float, text: float | None = None, healed: bool = False) -> CurvePoint:
    rows: list[tuple[Kind, float]] = [("visual", visual), *([("text", text)] if text is not None else [])]  # type: ignore[list-item]
    scores = [
        CurveScore(
            kind=kind,
            answers=answers,
            n=400,
            tasks=2,
            score=0.8 * kept / 100,
            tuned=difference(kept + (2 if answers == "choice" else 0), kind) if count else None,
            start=difference(kept * 2, kind),
        )
        for kind, kept in rows
        for answers in ("all", "choice", "written")
    ]
    if text is not None:
        nats = {"metric": "perplexity", "difference": 0.5, "low": 0.4, "high": 0.6}
        tuned = difference(60, "text").model_copy(update=nats) if count else None
        scores.append(CurveScore(kind="text", answers="perplexity", n=16, tasks=1, score=2.5, tuned=tuned))
    return CurvePoint(
        count=count,
        removed=tuple(range(count)),
        healed=healed,
        parameters=1_000_000 * (30 - count),
        bytes=4_000_000 * (30 - count),
        scores=tuple(scores),
        speed=TrialSpeed(key="", whole=speed(30), smaller=speed(30 - count)),
    )


def curve_of(*points: CurvePoint) -> Curve:
    region = Region(layers=(29,), num_layers=30, spec="ids:29")
    return Curve(
        spec="0:2",
        region=region,
        scorer="answer-loss",
        order=(0, 1),
        packs=("pack",),
        points=points,
        start=tuple(row.model_copy(update={"score": 0.3}) for row in points[0].scores),
        interval="95%, over pictures",
        recommendation=recommend(points, 30),
    )


def test_the_largest_count_before_the_first_that_keeps_too_little_is_recommended() -> None:
    found = recommend([point(0, 100), point(5, 98.7), point(6, 95), point(7, 99)], 30)
    assert found is not None
    assert (found.count, found.healed, found.keeps) == (5, False, {"visual": 98.0})
    assert found.text == (
        "Removing 5 of 30 layers keeps 98.7% (97.9 to 99.4) of the visual score, and reads a prompt 1.20 (0.98 to "
        "1.47) and writes 1.20 (0.98 to 1.47) times as fast; asked were "
        "98% of the visual score. The interval of the visual score reaches below that. "
        "6 would keep 95.0% (94.2 to 95.7) of the visual score."
    )


def test_without_an_interval_none_is_said_to_reach_anywhere() -> None:
    few = point(5, 98.7)
    rows = {"retention_low": None, "retention_high": None, "no_interval": "4 independent pictures are too few"}
    scores = tuple(
        row.model_copy(update={"tuned": row.tuned.model_copy(update=rows)}) if row.tuned else row for row in few.scores
    )
    found = recommend([point(0, 100), few.model_copy(update={"scores": scores})], 30)
    assert found is not None
    assert "98.7% (no 95% interval: 4 independent pictures are too few) of the visual score" in found.text
    assert "The interval of the" not in found.text
    assert "Whether the visual score does on other items no interval tells." in found.text


def test_text_bounds_as_well_and_healed_models_are_judged_where_there_are_some() -> None:
    points = [point(0, 100, 100), point(1, 99, 97), point(1, 99.5, 99, healed=True), point(2, 99, 97.9, healed=True)]
    found = recommend(points, 30)
    assert found is not None
    assert (found.count, found.healed) == (1, True)
    assert "Removing 1 of 30 layers and healing keeps 99.5% (98.7 to 100.2) of the visual score and 99.0%" in found.text
    assert found.text.endswith(
        "2 would keep 99.0% (98.2 to 99.7) of the visual score and 97.9% (97.1 to 98.6) of the text score."
    )


@pytest.mark.parametrize(
    ("points", "count", "said"),
    [
        ([(1, 90.0)], 0, "Remove none: no count that was tried keeps 98% of the visual score. Removing 1 keeps 90.0%"),
        ([(1, 99.9), (2, 99.8)], 2, "No larger count was tried."),
    ],
)
def test_the_ends_of_a_curve(points: list[tuple[int, float]], count: int, said: str) -> None:
    found = recommend([point(0, 100), *(point(*each) for each in points)], 30)
    assert found is not None
    assert found.count == count
    assert said in found.text


def test_nothing_is_recommended_where_nothing_was_scored() -> None:
    assert recommend([point(0, 100).model_copy(update={"scores": ()})], 30) is None


def record_of(label: str, found: list[Prediction]) -> EvalRecord:
    return EvalRecord(
        label=label,
        model="m",
        tasks=tuple(task_scores(found, 100, 0)),
        visual=None,
        text=None,
        parameters=1,
        num_layers=1,
        seconds=1,
        peak_memory_gib=0,
    )


def test_choices_and_written_answers_are_scored_apart() -> None:
    def answers(label: str, *rows: tuple[str, str, list[int]]) -> tuple[EvalRecord, list[Prediction]]:
        found = [
            Prediction(
                id=f"{task}{n}", pack="p", task=task, metric=metric, question="?", image=f"{task}{n}.png", score=score
            )
            for task, metric, scores in rows
            for n, score in enumerate(scores)
        ]
        return record_of(label, found), found

    tuned = answers("tuned", ("pick", "letter", [1, 1, 1, 1]), ("say", "exact", [1, 1, 1, 1]))
    small = answers("small", ("pick", "letter", [1, 1, 1, 0]), ("say", "exact", [1, 0, 0, 0]))
    rows = {row.answers: row for row in scores_by_form(small, tuned, None, 100, 0)}
    assert {form: (row.score, row.n, row.tasks) for form, row in rows.items()} == {
        "all": (0.5, 8, 2),
        "choice": (0.75, 4, 1),
        "written": (0.25, 4, 1),
    }
    assert {form: row.tuned.retention for form, row in rows.items() if row.tuned} == {
        "all": 50,
        "choice": 75,
        "written": 25,
    }
    assert all(row.kind == "visual" and row.start is None for row in rows.values())


def test_perplexity_is_a_row_of_its_own_and_in_no_mean() -> None:
    def texts(label: str, right: float, *nats: float) -> tuple[EvalRecord, list[Prediction]]:
        rows = [("say", "exact", right), *(("read", "perplexity", each) for each in nats)]
        found = [
            Prediction(id=f"{task}{n}", pack="p", task=task, metric=metric, question="?", score=score)
            for n, (task, metric, score) in enumerate(rows)
        ]
        return record_of(label, found), found

    whole, share, nats = scores_by_form(texts("small", 1, 2.5, 2.3), texts("tuned", 1, 2.0, 2.0), None, 100, 0)
    assert [(row.kind, row.answers, row.n, row.score) for row in (whole, share)] == [
        ("text", "all", 1, 1),
        ("text", "written", 1, 1),
    ]
    assert (nats.kind, nats.answers, nats.n, nats.score) == ("text", "perplexity", 2, pytest.approx(2.4))
    assert nats.tuned is not None
    assert (nats.tuned.task, nats.tuned.difference) == ("read", pytest.approx(0.4))


def test_a_row_of_the_table_has_every_figure_of_its_point() -> None:
    curve = curve_of(point(0, 100), point(2, 98.5))
    whole, row = csv.DictReader(io.StringIO(curve_csv(curve)))
    assert (row["removed"], row["layers"], row["healed"], row["parameters"]) == ("2", "0 1", "False", "28000000")
    assert (row["visual_kept"], row["visual_choice_kept"]) == ("98.5", "100.5")
    assert float(row["visual_kept_low"]) == pytest.approx(97.7)
    assert float(row["visual_kept_of_start"]) == pytest.approx(197)
    assert float(row["decode_times"]) == pytest.approx(30 / 28)
    assert (whole["visual_kept"], float(whole["prefill_times"])) == ("", 1)
    assert not any(name.startswith("text") for name in row)


@pytest.mark.parametrize(("width", "tables"), [(80, 3), (200, 1)])
def test_a_curve_is_told_in_as_many_tables_as_the_terminal_needs(width: int, tables: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    curve = curve_of(point(0, 100, 100), point(2, 98.5, 97))
    for part in fitting(curve_table(curve), width):
        console.print(part)
    shown = console.export_text()
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= width
    assert shown.count("removed ") == tables
    assert shown.count("98.5 [97.7, 99.2]") == 2
    for word in ("written", "choice", "perplexity", "parameters", "prefill", "decode", "28.0 M", "12.2"):
        assert word in shown
    assert shown.count("% kept of the tuned model") == 1


def test_the_terminal_shows_what_is_kept_with_its_interval() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(curve_table(curve_of(point(0, 100, 100), point(2, 98.5, 97), point(2, 99.5, 99, healed=True))))
    shown = console.export_text()
    assert "98.5 [97.7, 99.2]" in shown
    assert re.search(r"^ *2, healed .*1\.07x", shown, re.MULTILINE)
    assert "visual, written" in shown
    assert "text, perplexity" in shown
    assert "12.2" in shown
    assert re.search(r"^ *start +score 30\.0", shown, re.MULTILINE)


def test_the_page_has_the_picture_the_advice_and_both_forms_of_answers(tmp_path: Path) -> None:
    curve = curve_of(point(0, 100, 100), point(1, 99, 99), point(2, 98.5, 90))
    write_document(tmp_path / "curve.json", curve)
    page = report(tmp_path).read_text()
    assert curve.recommendation is not None
    assert curve.recommendation.text in page
    assert "figure-curve-visual-decode" in page
    assert "1 layer removed: 99.0% kept, 95% interval 98.2 to 99.7, n = 400" in page.replace("\u00a0", " ")
    assert "it does not begin at 0" in page
    assert "text score, choices and written answers apart" in page
    assert "98.5% (97.7 to 99.2)" in page
    assert "12.2 (+64.9%)" in page
    assert "The perplexity of text changes by +64.9% (+49.2% to +82.2%), less being better." in page
    assert "visual, start 30.0%" in page
    # Of 0.8 * (197 - 100) / 100, as the start is given above.
    assert "+77.6 points" in page
