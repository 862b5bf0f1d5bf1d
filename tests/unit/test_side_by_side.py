"""Answers of several models side by side, filtered to where they differ, and as tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from striate.artifacts import EvalRecord, Prediction
from striate.cli.views.evaluation_tables import difference_lines
from striate.errors import ArtifactError, ConfigError
from striate.tasks.scoring.answer_diff import change, differing, export


def record(label: str) -> EvalRecord:
    facts = {"parameters": 1, "num_layers": 1, "seconds": 0, "peak_memory_gib": 0}
    return EvalRecord.model_validate({"label": label, "model": "m", "tasks": (), "visual": None, "text": None, **facts})


def said(name: str, answer: str, score: float, metric: str = "exact") -> Prediction:
    return Prediction(
        id=name,
        pack="p",
        task="t",
        metric=metric,
        question="What, then?\n",
        image="x.png",
        expected=("a", "b"),
        answer=answer,
        score=score,
    )


START = [said("1", "a", 1), said("2", "a", 1), said("3", "c", 0), said("4", "p", 2.0, "perplexity")]
TUNED = [said("4", "q", 3.0, "perplexity"), said("3", "d", 0), said("2", "no, it is", 0), said("1", "a", 1)]
RESULTS = {"start": (record("start"), START), "tuned": (record("tuned"), TUNED)}


def test_only_items_that_differ_are_kept_in_order() -> None:
    rows = differing(RESULTS, "start")
    assert [row["start"].id for row in rows] == ["2", "3"]
    assert [change(row["start"], row["tuned"]) for row in rows] == ["right to wrong", "other words"]


def test_changes_in_words() -> None:
    assert change(said("1", "a", 0), said("1", "b", 1)) == "wrong to right"
    assert change(said("1", "a", 0.5), said("1", "b", 1)) == "better"
    assert change(said("1", "a", 1), said("1", "b", 0.6)) == "worse"
    assert change(START[0], START[0]) == ""


def test_lines_name_the_item_and_each_answer() -> None:
    assert list(difference_lines(differing(RESULTS, "start")[:1], "start")) == [
        "p/t  2  x.png",
        "  asked     What, then?",
        "  expected  a | b",
        "  start     a  [1]",
        "  tuned     no, it is  [0]  right to wrong",
    ]


def test_what_a_pruned_model_changed_is_told_of_the_tuned_one() -> None:
    row = {"start": said("1", "c", 0), "tuned": said("1", "a", 1), "pruned": said("1", "d", 0)}
    against = {"tuned": "start", "pruned": "tuned"}
    assert list(difference_lines([row], "start", against))[3:] == [
        "  start     c  [0]",
        "  tuned     a  [1]  wrong to right",
        "  pruned    d  [0]  right to wrong, beside tuned",
    ]
    # Where the tuned model was not asked, the baseline is all that there is.
    del row["tuned"]
    assert list(difference_lines([row], "start", against))[-1] == "  pruned    d  [0]  other words"


def test_tables_read_back(tmp_path: Path) -> None:
    rows = differing(RESULTS, "start")
    export(rows, tmp_path / "answers.csv")
    with (tmp_path / "answers.csv").open(newline="") as stream:
        found = list(csv.DictReader(stream))
    assert [row["id"] for row in found] == ["2", "3"]
    assert (found[0]["tuned answer"], found[0]["tuned score"], found[0]["expected"]) == ("no, it is", "0.0", "a | b")
    export(rows, tmp_path / "answers.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert lines[1]["expected"] == ["a", "b"]
    assert lines[1]["start answer"] == "c"
    with pytest.raises(ConfigError, match=r"answers\.xls is no table that is written"):
        export(rows, tmp_path / "answers.xls")


def test_models_must_have_answered_the_same_items() -> None:
    with pytest.raises(ArtifactError, match="'tuned' has no answer to '1' of p"):
        differing({**RESULTS, "tuned": (record("tuned"), TUNED[:-1])}, "start")


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3+cmd", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1"]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_is_a_formula(text: str, tmp_path: Path) -> None:
    harmful = said("9", text, 0).model_copy(update={"question": text, "expected": (text,), "pack": text, "image": text})
    export([{text: harmful}], tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as stream:
        header, row = csv.reader(stream)
    kept = text.replace("\r", "\n")
    assert f"'{kept} answer" in header
    assert row.count(f"'{kept}") == 5
    assert not [cell for cell in (*header, *row) if cell.lstrip()[:1] in "=+-@＝" and cell]


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    export([{"m": said("9", "-5.5e3", -0.5)}], tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().endswith(",-5.5e3,-0.5\n")


def test_a_file_is_replaced_only_if_asked(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("mine")
    with pytest.raises(ConfigError, match=r"exists already\n  allowed: a new file\n  next:    .* or use --overwrite"):
        export([], tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "mine"
    export([], tmp_path / "a.csv", overwrite=True)
    assert (tmp_path / "a.csv").read_text() == "pack,task,id\n"
    with pytest.raises(ConfigError, match="exists already"):
        export([], tmp_path, overwrite=True)


def test_a_carriage_return_begins_no_row(tmp_path: Path) -> None:
    export([{"m": said("9\r=1+1", "a\r\n=1", 0)}], tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as stream:
        assert len(list(csv.reader(stream))) == 2
    assert "\r" not in (tmp_path / "a.csv").read_text()
