"""Task means, macro averages and comparisons with a baseline, worked out by hand."""

from __future__ import annotations

import math

import pytest

from striate.artifacts import EvalRecord, Prediction
from striate.errors import ArtifactError
from striate.tasks.scoring.compare import compare_predictions, macro_average, macro_intervals, task_scores


def answer(name: str, score: float, task: str = "count", metric: str = "exact", **fields: object) -> Prediction:
    values = {
        "id": name,
        "pack": "p",
        "task": task,
        "metric": metric,
        "question": "q",
        "image": f"{name}.png",
        "score": score,
    }
    return Prediction.model_validate(values | fields)


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


START = [
    answer("a", 1),
    answer("b", 1),
    answer("c", 0, unparsed=True),
    answer("d", 0.5, "read", "anls"),
    answer("e", 1, "arc", "choice_logprob", image=None),
    answer("f", 2.0, "book", "perplexity", image=None, weight=3),
    answer("g", 4.0, "book", "perplexity", image=None, weight=1),
]
TUNED = [
    answer("g", 5.0, "book", "perplexity", image=None, weight=1),
    answer("f", 2.0, "book", "perplexity", image=None, weight=3),
    answer("e", 1, "arc", "choice_logprob", image=None),
    answer("d", 1.0, "read", "anls"),
    answer("c", 0),
    answer("b", 0),
    answer("a", 1),
]


def test_task_scores_by_hand() -> None:
    scores = task_scores(START, repetitions=200, seed=0)
    assert [(row.task, row.metric, row.kind, row.n, row.unparsed) for row in scores] == [
        ("count", "exact", "visual", 3, 1),
        ("read", "anls", "visual", 1, 0),
        ("arc", "choice_logprob", "text", 1, 0),
        ("book", "perplexity", "text", 2, 0),
    ]
    assert [row.score for row in scores] == pytest.approx([2 / 3, 0.5, 1, 2.5])
    assert [row.no_interval for row in scores] == [
        "3 independent pictures are too few",
        "one picture shows no spread",
        "one picture shows no spread",
        "2 independent texts are too few",
    ]
    assert all((row.low, row.high) == (None, None) for row in scores)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_scores_without_spread_have_an_interval_all_the_same(score: float) -> None:
    (task,) = task_scores([answer(str(place), score) for place in range(20)], repetitions=200, seed=0)
    assert task.low is not None
    assert task.high is not None
    # The exact interval (Clopper-Pearson) of 20 of 20 begins at 0.025 ** (1 / 20).
    assert task.high - task.low == pytest.approx(1 - 0.025 ** (1 / 20), abs=0.035)
    assert task.low <= score <= task.high
    assert min(task.low, 1 - task.high) >= 0


def test_nats_have_no_bounds_and_get_no_such_interval() -> None:
    read = [answer(str(place), 2.0, "book", "perplexity") for place in range(20)]
    (task,) = task_scores(read, repetitions=200, seed=0)
    assert (task.low, task.high, task.no_interval) == (None, None, "no text differs from the others")


def test_macro_averages_weigh_tasks_alike_and_leave_perplexity_out() -> None:
    scores = task_scores(START, repetitions=200, seed=0)
    assert macro_average(scores, "visual") == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert macro_average(scores, "text") == 1
    assert macro_average(scores[3:], "text") is None
    assert macro_average([], "visual") is None


def test_one_task_name_with_two_metrics_is_two_tasks() -> None:
    both = [answer("a", 1), answer("b", 0, metric="choice")]
    assert [(row.metric, row.score) for row in task_scores(both, 200, 0)] == [("exact", 1), ("choice", 0)]


def test_comparisons_by_hand() -> None:
    rows = compare_predictions((record("start"), START), (record("tuned"), TUNED), repetitions=500, seed=0)
    assert [(row.pack, row.task, row.kind, row.metric, row.n) for row in rows] == [
        ("p", "count", "visual", "exact", 3),
        ("p", "read", "visual", "anls", 1),
        ("p", "arc", "text", "choice_logprob", 1),
        ("p", "book", "text", "perplexity", 2),
        ("*", "visual", "visual", "mean", 4),
        ("*", "text", "text", "mean", 1),
    ]
    assert {(row.label, row.baseline) for row in rows} == {("tuned", "start")}
    count, read, arc, book, visual, text = rows
    assert (count.baseline_score, count.score) == pytest.approx((2 / 3, 1 / 3))
    assert count.difference == pytest.approx(-1 / 3)
    assert count.retention == pytest.approx(50)
    assert (read.difference, read.low, read.high, read.retention) == pytest.approx((0.5, None, None, 200))
    assert (arc.difference, arc.retention, arc.retention_low, arc.retention_high) == pytest.approx((0, 100, None, None))
    assert visual.no_interval == "a task with one picture shows no spread"
    assert (count.right_to_wrong, count.wrong_to_right, count.mcnemar_p, count.clusters) == (1, 0, 1.0, 3)
    assert (read.right_to_wrong, read.wrong_to_right, read.mcnemar_p) == (None, None, None)
    assert (book.right_to_wrong, visual.right_to_wrong, text.right_to_wrong) == (None, None, 0)
    assert count.resolvable is None
    assert book.difference == pytest.approx(0.25)
    assert book.retention == pytest.approx(100 * math.exp(-0.25))
    assert visual.baseline_score == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert visual.score == pytest.approx((1 / 3 + 1) / 2)
    assert visual.retention == pytest.approx(100 * visual.score / visual.baseline_score)
    assert text.retention == pytest.approx(100)


def test_a_model_against_itself_keeps_everything_as_far_as_the_sample_can_tell() -> None:
    items = [
        item.model_copy(update={"id": f"{item.id}{place}", "image": item.image and f"{place}{item.image}"})
        for place in range(12)
        for item in START
    ]
    for row in compare_predictions((record("start"), items), (record("start"), items), 200, 0):
        assert row.difference == 0
        assert row.retention == pytest.approx(100)
        if row.metric == "perplexity":
            assert (row.low, row.no_interval) == (None, "no text differs from the others")
        else:
            assert row.high is not None
            assert row.low == pytest.approx(-row.high)
            assert 0 < row.high < 0.3
            assert row.resolvable == row.high


def test_items_of_one_picture_are_one_cluster_also_across_tasks() -> None:
    same = [answer(name, score, task, picture="p1") for name, score, task in (("a", 1, "x"), ("b", 0, "y"))]
    start = [*same, answer("c", 1, "x", picture="p2")]
    tuned = [item.model_copy(update={"score": 1 - item.score}) for item in start]
    rows = compare_predictions((record("start"), start), (record("tuned"), tuned), 200, 0)
    assert [(row.task, row.n, row.clusters) for row in rows] == [("x", 2, 2), ("y", 1, 1), ("visual", 3, 2)]
    assert [(score.n, score.clusters) for score in task_scores(start, 200, 0)] == [(2, 2), (1, 1)]


def test_items_that_show_two_pictures_go_with_the_items_of_either() -> None:
    start = [answer("a", 1, picture="p1+p2"), answer("b", 0, picture="p2"), answer("c", 1, picture="p3")]
    rows = compare_predictions((record("start"), start), (record("tuned"), start), 200, 0)
    assert [(row.n, row.clusters) for row in rows] == [(3, 2), (3, 2)]


def test_macro_averages_have_an_interval_over_the_pictures_of_all_tasks() -> None:
    apart = [answer(f"{task}{place}", place % 2, task) for task in "xy" for place in range(40)]
    same = [item.model_copy(update={"picture": item.id[1:]}) for item in apart]
    low, high = macro_intervals(apart)["visual"]
    wide_low, wide_high = macro_intervals(same)["visual"]
    assert low < 0.5 < high
    assert wide_high - wide_low == pytest.approx(math.sqrt(2) * (high - low), rel=0.05)
    assert macro_intervals(START) == {}


def test_perplexity_alone_has_no_macro_row() -> None:
    rows = compare_predictions((record("a"), START[5:]), (record("b"), TUNED[:2]), 200, 0)
    assert [row.task for row in rows] == ["book"]


def test_a_zero_baseline_has_no_retention() -> None:
    row = compare_predictions((record("a"), [answer("x", 0)]), (record("b"), [answer("x", 1)]), 200, 0)[0]
    assert (row.difference, row.retention, row.retention_low, row.retention_high) == (1, None, None, None)


@pytest.mark.parametrize("other", [TUNED[:-1], [*TUNED, answer("h", 1)], [*TUNED[:-1], answer("h", 1)]])
def test_different_items_are_not_compared(other: list[Prediction]) -> None:
    with pytest.raises(ArtifactError) as caught:
        compare_predictions((record("start"), START), (record("tuned"), other), 200, 0)
    assert f"'tuned' and 'start' did not answer the same items: {len(other)} and 7" in str(caught.value)
    assert "run `striate evaluate` again for both" in str(caught.value)
    if len(other) <= len(START):
        assert "'a' is only in 'start'" in str(caught.value)
