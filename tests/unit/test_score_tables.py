"""Ranks, rank correlation, comparison of runs, tidy rows, and their export."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from striate.artifacts import LayerScores, Scores
from striate.errors import ArtifactError, ConfigError
from striate.scores.comparison import compare_scores, shared_tasks
from striate.scores.export import export_scores, tidy_rows
from striate.scores.ranking import agreement, mean_ranks, ranks, spearman

values_lists = st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=20)


def entry(scorer: str, values: list[float], parts: dict[str, list[float]] | None = None) -> LayerScores:
    return LayerScores(
        scorer=scorer,
        values=tuple(values),
        low=tuple(value - 0.1 for value in values),
        high=tuple(value + 0.1 for value in values),
        parts={part: tuple(row) for part, row in (parts or {}).items()},
        part_low={"image": tuple(value - 1 for value in parts["image"])} if parts else {},
        part_high={"image": tuple(value + 1 for value in parts["image"])} if parts else {},
        samples=3,
    )


def scores(tasks: dict[str, tuple[LayerScores, ...]] | None = None, *entries: LayerScores) -> Scores:
    return Scores(num_layers=len(entries[0].values), samples=3, scorers=entries, tasks=tasks or {})


@given(values_lists)
def test_ranks_are_the_mean_places(values: list[float]) -> None:
    found = ranks(values)
    assert sum(found) == len(values) * (len(values) + 1) / 2
    for value, rank in zip(values, found, strict=True):
        above = sum(other > value for other in values)
        equal = sum(other == value for other in values)
        assert rank == above + (equal + 1) / 2


@given(values_lists.flatmap(lambda one: st.tuples(st.just(one), st.permutations(one))))
def test_spearman_is_pearson_of_the_ranks(pair: tuple[list[float], list[float]]) -> None:
    first, second = pair
    found = spearman(first, second)
    if len(set(first)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(np.corrcoef(ranks(first), ranks(second))[0, 1], abs=1e-12)
        assert spearman(first, first) == pytest.approx(1)
        assert spearman(first, [-value for value in first]) == pytest.approx(-1)


def test_spearman_by_hand() -> None:
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert spearman([1.0], [2.0]) is None
    assert spearman([1, 2, 3], [1, 1, 1]) is None
    with pytest.raises(ValueError, match="longer"):
        spearman([1, 2], [1, 2, 3])


def test_mean_ranks() -> None:
    assert mean_ranks([[3.0, 2.0, 1.0], [10.0, 30.0, 20.0]]) == (2.0, 1.5, 2.5)


def test_agreement_is_a_symmetric_matrix() -> None:
    a, b, flat = entry("a", [1.0, 2.0, 3.0]), entry("b", [3.0, 2.0, 1.0]), entry("flat", [1.0, 1.0, 1.0])
    found = agreement(scores({"ocr": (a, b)}, a, b, flat))
    assert found.scorers == ("a", "b", "flat")
    assert found.matrix == ((1.0, -1.0, None), (-1.0, 1.0, None), (None, None, None))
    assert agreement(scores({"ocr": (a, b)}, a), "ocr").matrix == ((1.0, -1.0), (-1.0, 1.0))
    with pytest.raises(ArtifactError, match="no scores of task 'chart' here"):
        agreement(scores({"ocr": (a, b)}, a), "chart")


def test_two_runs_compared() -> None:
    first = scores(None, entry("a", [4.0, 3.0, 2.0, 1.0]), entry("b", [1.0, 2.0, 3.0, 4.0]))
    second = scores(None, entry("c", [0.0] * 4), entry("a", [1.0, 3.0, 2.0, 4.0]))
    (found,) = compare_scores(first, second)
    assert found.scorer == "a"
    assert found.rank_correlation == pytest.approx(1 - 6 * 18 / 60)
    assert [(move.layer, move.first, move.second, move.distance) for move in found.moves] == [
        (0, 1.0, 4.0, 3.0),
        (3, 4.0, 1.0, 3.0),
        (1, 2.0, 2.0, 0.0),
        (2, 3.0, 3.0, 0.0),
    ]


def test_what_can_not_be_compared() -> None:
    first, second = scores(None, entry("a", [1.0, 2.0])), scores(None, entry("a", [1.0, 2.0, 3.0]))
    with pytest.raises(ArtifactError, match="the first run scored 2 layers, and the second 3") as caught:
        compare_scores(first, second)
    assert "models of one depth" in str(caught.value)
    with pytest.raises(ArtifactError, match="share no scorer: a against b") as caught:
        compare_scores(first, scores(None, entry("b", [1.0, 2.0])))
    assert "analyze.scorers" in str(caught.value)
    with pytest.raises(ArtifactError, match="share no task: none against ocr"):
        shared_tasks(first, scores({"ocr": (entry("a", [1.0, 2.0]),)}, entry("a", [1.0, 2.0])))


def example() -> Scores:
    parts = {"image": [1.0, 2.0], "text": [0.1, 0.25]}
    return scores({"ocr": (entry("a", [1 / 3, 2.0]),)}, entry("a", [0.5, 1e-9], parts), entry("b", [-1.0, 0.0]))


def test_rows_are_tidy() -> None:
    rows = tidy_rows(example())
    assert [(row.scorer, row.task, row.part, row.layer) for row in rows] == [
        *[("a", "all", part, layer) for part in ("all", "image", "text") for layer in (0, 1)],
        *[("b", "all", "all", layer) for layer in (0, 1)],
        *[("a", "ocr", "all", layer) for layer in (0, 1)],
    ]
    assert [(row.value, row.low, row.high) for row in rows[2:5]] == [
        (1.0, 0.0, 2.0),
        (2.0, 1.0, 3.0),
        (0.1, None, None),
    ]


def test_csv_and_json_hold_the_same(tmp_path: Path) -> None:
    found = example()
    export_scores(found, tmp_path / "scores.csv")
    export_scores(found, tmp_path / "folder" / "scores.JSON")
    with (tmp_path / "scores.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    document = json.loads((tmp_path / "folder" / "scores.JSON").read_text())
    assert (document["version"], document["num_layers"], document["samples"]) == (1, 2, 3)
    rows = tidy_rows(found)
    assert list(table[0]) == list(document["rows"][0]) == ["scorer", "task", "part", "layer", "value", "low", "high"]
    for row, line, item in zip(rows, table, document["rows"], strict=True):
        assert float(line["value"]) == item["value"] == row.value
        assert (line["low"] == "") is (item["low"] is None) is (row.low is None)
        assert int(line["layer"]) == item["layer"] == row.layer
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_export_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "there.csv").write_text("mine")
    with pytest.raises(ConfigError, match=r"unknown suffix '\.txt'") as caught:
        export_scores(example(), tmp_path / "scores.txt")
    assert ".csv or .json" in str(caught.value)
    assert "--export scores.csv" in str(caught.value)
    with pytest.raises(ConfigError, match="exists already") as caught:
        export_scores(example(), tmp_path / "there.csv")
    assert "use --overwrite" in str(caught.value)
    assert (tmp_path / "there.csv").read_text() == "mine"
    export_scores(example(), tmp_path / "there.csv", overwrite=True)
    assert (tmp_path / "there.csv").read_text().startswith("scorer,task,part,layer,value,low,high\na,all,all,0,0.5,")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        export_scores(example(), tmp_path / "folder.csv", overwrite=True)
    with pytest.raises(ArtifactError, match="can't write"):
        export_scores(example(), tmp_path / "there.csv" / "scores.csv")
