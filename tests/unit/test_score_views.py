"""The stack on the terminal: bars, intervals, parts, tasks, agreement, stability, and two runs."""

from __future__ import annotations

import re
from typing import Any

from rich.console import Console

from striate.artifacts import LayerScores, Peak, Region, Scores, SplitHalf
from striate.cli.views.score_tables import agreement_table, bar, comparison_tables, stability_table, stack_tables
from striate.scores.comparison import compare_scores

HALVES = SplitHalf(rank_correlation=0.87, low=0.7, high=0.95, samples_needed=1024)
PEAK = Peak(layer=2, low=1, high=3, share=0.7, centre=2.1, centre_low=1.8, centre_high=2.4)


def entry(scorer: str, values: tuple[float, ...], **more: Any) -> LayerScores:
    low, high = (tuple(value + shift for value in values) for shift in (-0.01, 0.01))
    return LayerScores(**{"scorer": scorer, "values": values, "low": low, "high": high, "samples": 8, **more})


ONE = entry(
    "block-influence", (0.1, 0.4, 0.8, 0.2), split_half=HALVES, peak=PEAK, parts={"image": (0.0, 0.1, 0.2, 0.3)}
)
TWO = entry("knock-out", (-0.5, 0.5, 0.0, 0.25))
WEIGHTS = entry("spectrum-snr", (1500.0, 1600.0, 1700.0, 1800.0), samples=0)


def scores(*entries: LayerScores, **tasks: tuple[LayerScores, ...]) -> Scores:
    return Scores(num_layers=4, samples=8, scorers=entries, tasks=tasks)


def drawn(*tables: Any, width: int = 80) -> str:
    console = Console(width=width, highlight=False, markup=False, color_system=None)
    with console.capture() as capture:
        for table in tables:
            console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def test_bars_are_eighths_of_cells() -> None:
    assert bar(0.0, 0.0, 1.0) == " " * 8
    assert bar(1.0, 0.0, 1.0) == "█" * 8
    assert bar(0.5, 0.0, 1.0) == "████    "
    assert bar(1 / 64, 0.0, 1.0) == "▏       "
    assert bar(0.0, -0.5, 0.5) == "████    "
    assert bar(3.0, 3.0, 3.0) == " " * 8
    assert {len(bar(step / 100, 0.0, 1.0)) for step in range(101)} == {8}


def test_the_stack_shows_layer_region_bar_value_and_interval() -> None:
    region = Region(layers=(0, 2), num_layers=4, spec="uniform:2")
    text = drawn(*stack_tables(scores(ONE), region, 80))
    lines = text.splitlines()
    assert lines[0] == "8 samples: score and 95% interval"
    assert lines[1].split() == ["layer", "block-influence"]
    assert lines[2] == "    0  █  █        0.1000  0.0900 to 0.1100"
    assert lines[3] == "    1  ░  ████     0.4000  0.3900 to 0.4100"
    assert lines[4] == "    2  █  ████████ 0.8000  0.7900 to 0.8100"
    assert "block-influence by part" in lines
    assert "    1" in drawn(*stack_tables(scores(ONE), None, 80))
    assert "░" not in drawn(*stack_tables(scores(ONE), None, 80))


def test_too_few_samples_for_an_interval_are_told() -> None:
    few = entry("block-influence", (0.1, 0.4, 0.8, 0.2)).model_copy(update={"low": (), "high": (), "peak": None})
    lines = drawn(*stack_tables(scores(few), None, 200)).splitlines()
    assert lines[0] == "8 samples: score and 95% interval (of fewer than 10 none holds)"
    assert lines[3].split()[-1] == "0.4000"


def test_scores_below_zero_and_large_ones_and_none_of_samples() -> None:
    text = drawn(*stack_tables(scores(TWO, WEIGHTS), None, 80))
    assert "    0           -0.5000  -0.5100 to -0.4900  ██████▋  1.50e+03" in text.splitlines()
    assert "    1  ████████  0.5000   0.4900 to  0.5100  ███████▏ 1.60e+03" in text.splitlines()


def test_what_does_not_fit_comes_in_a_further_table() -> None:
    many = scores(*(entry(f"scorer-{number}", (0.1, 0.2, 0.3, 0.4)) for number in range(5)))
    for width in (40, 80, 120, 200):
        text = drawn(*stack_tables(many, Region(layers=(1,), num_layers=4, spec="ids:1"), width), width=width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        assert re.findall(r"scorer-\d", text) == [f"scorer-{number}" for number in range(5)]
        assert len(re.findall(r"^ +3 ", text, re.MULTILINE)) == {40: 5, 80: 3, 120: 2, 200: 1}[width]


def test_tasks_have_columns() -> None:
    lines = drawn(*stack_tables(scores(ONE, TWO, ocr=(ONE,), count=(TWO, ONE)), None, 80)).splitlines()
    place = lines.index("block-influence by task")
    assert lines[place + 1].split() == ["layer", "ocr", "count"]
    assert lines[place + 2] == "    0  █        0.1000  █        0.1000"
    assert lines[lines.index("knock-out by task") + 1].split() == ["layer", "count"]


def test_agreement() -> None:
    assert agreement_table(scores(ONE)) is None
    lines = drawn(agreement_table(scores(ONE, WEIGHTS, entry("flat", (1.0, 1.0, 1.0, 1.0))))).splitlines()
    assert lines[0] == "agreement between scorers: Spearman's rank correlation over layers"
    assert lines[2].split() == ["1", "block-influence", "1.00", "0.40", "-"]
    assert lines[4].split() == ["3", "flat", "-", "-", "-"]


def test_stability() -> None:
    assert stability_table(scores(WEIGHTS)) is None
    lines = drawn(stability_table(scores(ONE, TWO, WEIGHTS, ocr=(TWO, ONE))), width=100).splitlines()
    assert lines[1].split() == ["scorer", "task", "highest", "samples", "split-half", "for", "0.9"]
    assert re.split(r"  +", lines[2]) == ["block-influence", "all", "2 (1 to 3)", "8", "0.87 (0.70 to 0.95)", "1,024"]
    assert re.split(r"  +", lines[4]) == ["knock-out", "all", "1", "8", "-", "-"]
    assert [line.split()[:2] for line in lines[2:]] == [
        ["block-influence", "all"],
        ["block-influence", "ocr"],
        ["knock-out", "all"],
        ["knock-out", "ocr"],
    ]


def test_two_runs() -> None:
    other = entry("block-influence", (0.8, 0.4, 0.1, 0.2))
    lines = drawn(*comparison_tables(compare_scores(scores(ONE, TWO), scores(other, TWO)))).splitlines()
    assert lines[2].split() == ["block-influence", "-0.80"]
    assert lines[3].split() == ["knock-out", "1.00"]
    assert lines[4] == "block-influence: layers that moved most (rank 1 is the most important)"
    assert [line.split() for line in lines[6:]] == [["0", "4", "1", "-3"], ["2", "1", "4", "+3"]]
