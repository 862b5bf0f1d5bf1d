"""The report's pictures of layer scores: what they draw is what the scores say."""

from __future__ import annotations

import base64
import gzip
import math
import random
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from striate.artifacts import LayerScores, Peak, Region, Scores, SplitHalf, read_document, write_document
from striate.errors import ArtifactError
from striate.reporting.charts.agreement import agreement_of
from striate.reporting.charts.bands import draw_bands
from striate.reporting.charts.contrast import contrast_map, contrasts_of
from striate.reporting.charts.drawing.colours import STEPS
from striate.reporting.charts.drawing.svg import NARROW, WIDE
from striate.reporting.charts.function_map import function_map, peak_table
from striate.reporting.charts.heat import Heat, Spot, draw_heat
from striate.reporting.charts.layer_map import map_of_all, map_of_scorer
from striate.reporting.charts.layer_spans import span_triangle
from striate.reporting.charts.strategies import draw_strategies
from striate.reporting.data.run_artifacts import gather
from striate.reporting.data.series import Series, series_of, stability, tasks_of, whole
from striate.reporting.html.chooser import chooser, pack, slug
from striate.reporting.sections.analysis import draw_function_maps, draw_layer_maps
from striate.stages.report import report, side_by_side

MakeRun = Callable[[Path], Path]


@pytest.fixture(scope="module")
def run(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("layers"))


@pytest.fixture(scope="module")
def scores(run: Path) -> Scores:
    return read_document(run / "scores.json", Scores)


def entry(scorer: str, *values: float, samples: int = 8) -> LayerScores:
    return LayerScores(scorer=scorer, values=values, low=values, high=values, samples=samples)


def test_map_of_a_scorer_has_a_column_for_all_each_part_and_each_task(scores: Scores) -> None:
    heat = map_of_scorer(scores, "modality-block-influence")
    assert list(heat.columns[:6]) == ["all samples", "image", "text", "recognition", "count", "reading"]
    assert heat.gaps == {1, 3}
    assert list(heat.rows) == [str(layer) for layer in range(29, -1, -1)]
    counted = scores.of("modality-block-influence", "count")
    for layer in range(30):
        spot = heat.spots[29 - layer][4]
        assert spot
        value, low, high = (row[layer] for row in (counted.values, counted.low, counted.high))
        assert spot.tip == f"layer {layer} · count: {value:.4g}, 95% interval {low:.4g} to {high:.4g}, 16 samples"
        assert spot.marked == (value == max(counted.values))


def test_each_column_is_coloured_from_its_own_lowest_to_its_own_highest() -> None:
    scores = Scores(num_layers=3, samples=8, scorers=(entry("a", 1, 2, 3), entry("b", -100, 300, 100)))
    shares = [[spot.share for spot in row if spot] for row in map_of_all(scores).spots]
    assert shares == [[1.0, 0.5], [0.5, 1.0], [0.0, 0.0]]
    assert map_of_all(scores).feet == [("1.00", "3.00"), ("−100", "300")]


def test_a_task_that_no_scorer_could_score_has_no_map(tmp_path: Path) -> None:
    scores = Scores(
        num_layers=2,
        samples=8,
        scorers=(entry("a", 1, 2), entry("b", 2, 1)),
        tasks={"ocr": (entry("a", 1, 2),), "text": ()},
    )
    write_document(tmp_path / "scores.json", scores)
    page = report(tmp_path).read_text()
    assert "every scorer, ocr" in page
    assert "every scorer, text" not in page


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_maps_stay_inside_the_picture(scores: Scores, width: float) -> None:
    for height, shapes in (
        draw_heat(map_of_scorer(scores, "modality-block-influence"), width),
        draw_heat(function_map(tasks_of(scores, "block-influence")), width),
        draw_bands(series_of(scores, "modality-block-influence"), width),
    ):
        boxes = re.findall(r'<rect x="([\d.-]+)" y="([\d.-]+)" width="([\d.]+)" height="([\d.]+)"', "".join(shapes))
        assert len(boxes) > 20
        for x, y, wide, high in (tuple(map(float, box)) for box in boxes):
            assert x >= -0.01
            assert y >= -0.01
            assert x + wide <= width + 0.02
            assert y + high <= height + 0.02


def test_cells_hold_their_value_where_there_is_room() -> None:
    spots = [[Spot(0.2, "tip", "0.250"), Spot(0.9, "other tip", "1.75")]]
    drawn = "".join(draw_heat(Heat(rows=["7"], columns=["0", "1"], spots=spots), WIDE)[1])
    assert re.findall(r'class="(value[^"]*)">([^<]+)<', drawn) == [("value", "0.250"), ("value strong", "1.75")]
    crowded = Heat(rows=["7"], columns=[str(n) for n in range(80)], spots=[spots[0] * 40])
    assert 'class="value' not in "".join(draw_heat(crowded, NARROW)[1])


def test_bands_draw_every_value_at_its_height() -> None:
    series = [Series("all samples", "all", (0.0, 0.5, 1.0), (0.0, 0.25, 1.0), (0.0, 0.75, 1.0), samples=8)]
    height, shapes = draw_bands(series, WIDE)
    drawn = "".join(shapes)
    ((line,), (band,)) = (re.findall(rf'<path d="([^"]*)" class="{kind} s0"', drawn) for kind in ("series", "band"))
    ys = [float(y) for y in re.findall(r"[\d.]+ ([\d.]+)", line)]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.02)
    assert ys[0] - ys[2] == pytest.approx(250, abs=0.02)
    edges = [float(y) for y in re.findall(r"[\d.]+ ([\d.]+)", band)]
    assert edges[1] == pytest.approx(ys[1] - 62.5, abs=0.02)
    assert edges[4] == pytest.approx(ys[1] + 62.5, abs=0.02)
    assert "layer 1 · all samples: 0.5, 95% interval 0.25 to 0.75, 8 samples" in drawn
    assert height > 250


def test_bands_of_a_wide_range_are_logarithmic() -> None:
    drawn = "".join(draw_bands([Series("a", "all", (0.01, 0.1, 1.0))], WIDE)[1])
    line = re.findall(r'<path d="([^"]*)" class="series s0"', drawn)[0]
    ys = [float(y) for y in re.findall(r"[\d.]+ ([\d.]+)", line)]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.02)
    assert 'class="band' not in drawn


def test_equal_scores_have_bands_too() -> None:
    height, shapes = draw_bands([Series("a", "all", (0.3, 0.3), (0.3, 0.3), (0.3, 0.3))], NARROW)
    assert "nan" not in "".join(shapes)
    assert math.isfinite(height)


def test_function_map_places_peak_and_centre_with_their_intervals() -> None:
    peak = Peak(layer=2, low=1, high=3, share=0.62, centre=1.75, centre_low=1.5, centre_high=2.25)
    series = [Series("reading", "task", (0.0, 1.0, 4.0, 3.0), samples=40, peak=peak)]
    heat = function_map(series)
    assert [spot.share for spot in heat.spots[0] if spot] == [0.0, 0.25, 1.0, 0.75]
    assert [spot.marked for spot in heat.spots[0] if spot] == [False, False, True, False]
    drawn = "".join(draw_heat(heat, WIDE)[1])
    cells = [float(x) for x in re.findall(r'<rect x="([\d.]+)"[^>]*class="h\d+(?: marked)?"><title>layer', drawn)]
    pitch = cells[1] - cells[0]

    def middle(layer: float) -> float:
        return cells[0] + (layer + 0.5) * pitch

    (bracket,) = re.findall(r'<line x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)" y2="[\d.]+" class="bracket"', drawn)
    assert [float(x) for x in bracket] == pytest.approx([middle(0.5), middle(3.5)], abs=1)
    (reach,) = re.findall(r'<line x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)" y2="[\d.]+" class="reach"', drawn)
    assert [float(x) for x in reach] == pytest.approx([middle(1.5), middle(2.25)], abs=0.02)
    assert float(re.findall(r'<circle cx="([\d.]+)"', drawn)[0]) == pytest.approx(middle(1.75), abs=0.02)
    assert "reading: highest at layer 2 (95% interval 1 to 3); centre of mass 1.8 (95% interval 1.5 to 2.2)" in drawn
    told = re.sub(r"<[^>]+>", " ", peak_table(series))
    assert "1 to 3 (62% the same)" in told


def test_contrast_is_the_interaction_of_task_and_layer() -> None:
    first = Series("a", "task", (1.0, 3.0, 2.0), (1.0, 2.9, 1.9), (1.0, 3.1, 2.1), samples=8)
    second = Series("b", "task", (10.0, 10.0, 10.0), (10.0, 9.6, 9.6), (10.0, 10.4, 10.4), samples=8)
    one, other = contrasts_of([first, second])
    assert one.differences == pytest.approx((-0.5, 0.5, 0.0))
    assert other.differences == pytest.approx((0.5, -0.5, 0.0))
    # With two tasks each half width, 0.1 and 0.4, counts for half. 2.6383 is z at 1 - 0.025 / 6.
    half = math.hypot(0.1, 0.4) / 2 * 2.6383 / 1.95996
    assert one.halves == pytest.approx((0.0, half, half), rel=1e-4)
    assert one.halves == pytest.approx(other.halves)
    spots = contrast_map([one, other]).spots
    assert [spot.share for spot in spots[0] if spot] == pytest.approx([-1.0, 1.0, 0.0])
    assert [spot.dotted for spot in spots[0] if spot] == [True, True, False]
    tip = "layer 1 · a: 0.500 against the mean of tasks, simultaneous 95% interval ± 0.278"
    assert spots[0][1]
    assert spots[0][1].tip == tip


def test_tasks_of_too_few_samples_have_no_dots_and_say_so() -> None:
    sure = Series("a", "task", (1.0, 9.0), (1.0, 9.0), (1.0, 9.0), samples=40)
    few = Series("b", "task", (1.0, 2.0), samples=5)
    spots = contrast_map(contrasts_of([sure, few])).spots
    assert not any(spot.dotted for row in spots for spot in row if spot)
    assert spots[0][1]
    assert spots[0][1].tip == "layer 1 · a: 1.75 against the mean of tasks, too few samples to tell"


def test_a_page_of_too_few_samples_says_that_no_interval_holds() -> None:
    few = LayerScores(scorer="block-influence", values=(1.0, 2.0), low=(), high=(), samples=5)
    scores = Scores(num_layers=2, samples=5, scorers=(few,), tasks={"count": (few,), "read": (few,)})
    assert "Fewer than 10 samples with such tokens: no interval can hold" in str(draw_layer_maps(scores))
    assert "Fewer than 10 samples: count, read. No interval of so few holds" in str(draw_function_maps(scores))
    assert "layer 1 · all samples: 2, 5 samples" in str(draw_layer_maps(scores))


def test_one_high_layer_does_not_shift_the_others() -> None:
    low, high = Series("a", "task", (1.0, 1.0, 1.0, 1.0)), Series("b", "task", (9.0, 1.0, 1.0, 1.0))
    assert contrasts_of([low, high])[1].differences == (4.0, 0.0, 0.0, 0.0)


def test_no_difference_is_called_sure_by_chance() -> None:
    rng = random.Random(0)
    sure = 0
    for _ in range(100):
        series = []
        for task in range(6):
            means = [1 + (layer == 3) + rng.gauss(0, 0.02) for layer in range(30)]
            low, high = (tuple(mean + edge for mean in means) for edge in (-0.0392, 0.0392))
            series.append(Series(str(task), "task", tuple(means), low, high, samples=50))
        sure += any(one.sure(layer) for one in contrasts_of(series) for layer in range(30))
    assert sure <= 12


def test_contrast_of_equal_scores_is_none() -> None:
    flat = Series("flat", "task", (0.3, 0.3))
    assert contrasts_of([flat, flat])[0].differences == (0.0, 0.0)


def test_agreement_is_spearmans_correlation() -> None:
    series = [
        whole(entry("a", 1, 2, 3, 4), "a"),
        whole(entry("b", 10, 30, 20, 40), "b"),
        whole(entry("c", 4, 3, 2, 1), "c"),
        whole(entry("flat", 1, 1, 1, 1), "flat"),
    ]
    spots = agreement_of(series).spots
    labels = [[spot.label if spot else None for spot in row] for row in spots]
    assert labels[0] == ["1.00", "0.80", "−1.00", None]
    assert [row[0] for row in labels] == labels[0]
    assert spots[0][2]
    assert (spots[0][2].kind, spots[0][2].tip) == ("d0", "a and c: rank correlation −1.00")
    assert spots[0][0]
    assert spots[0][0].kind == f"d{STEPS - 1}"


@pytest.mark.parametrize(
    ("split", "samples", "text"),
    [
        (SplitHalf(rank_correlation=0.93, low=0.88, high=0.97, samples_needed=41), 64, "about 41 samples, enough"),
        (SplitHalf(rank_correlation=0.5, low=0.3, high=0.6, samples_needed=576), 64, "more than there are"),
        (SplitHalf(rank_correlation=-0.1, low=-0.4, high=0.2), 64, "the ranking is noise at this size"),
        (None, 3, "3 samples, too few to halve"),
        (None, 64, "not measured"),
        (None, 0, "reads weights only"),
    ],
)
def test_stability_in_words(split: SplitHalf | None, samples: int, text: str) -> None:
    assert text in stability(split, samples)


def test_spans_make_a_triangle_with_the_least_of_each_length_marked() -> None:
    scored = entry("angular-distance", 0.2, 0.1, 0.3).model_copy(
        update={"spans": ((0.2, 0.1, 0.3), (0.4, 0.35), (0.5,))}
    )
    heat = span_triangle(scored)
    assert [[spot.marked if spot else None for spot in row] for row in heat.spots] == [
        [False, True, False],
        [False, True, None],
        [False, None, None],
    ]
    spot = heat.spots[1][1]
    assert spot
    assert spot.tip == "layers 1 to 2 (2 layers) · angular distance: 0.35"


def test_strategies_stand_side_by_side_and_their_votes_are_counted() -> None:
    regions = [Region(layers=layers, num_layers=4, spec=f"ids:{layers}") for layers in ((0, 1), (1, 2))]
    drawn = "".join(draw_strategies(regions, WIDE)[1])
    assert drawn.count('class="layer region"') == 4
    assert drawn.count('class="layer frozen"') == 4
    assert "layer 1: in 2 of 2 regions (100%)" in drawn
    assert "layer 3: in 0 of 2 regions (0%)" in drawn


def test_regions_side_by_side_have_the_size_of_the_runs_own(run: Path) -> None:
    regions = side_by_side(gather(run))
    specs = [region.spec for region in regions]
    assert specs[0] == "uniform:25%"
    assert "uniform:8" not in specs
    assert {"bottom:8", "top:8", "random:8@seed0", "scores:angular-distance:8"} <= set(specs)
    assert {len(region) for region in regions} == {8}


def test_rules_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    write_document(tmp_path / "scores.json", Scores(num_layers=2, samples=8, scorers=(entry("block-influence", 1, 2),)))
    specs = [region.spec for region in side_by_side(gather(tmp_path))]
    assert "uniform:1" in specs
    assert "scores:block-influence:1" in specs


def test_a_folder_with_scores_alone_has_a_whole_page(run: Path, tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_bytes((run / "scores.json").read_bytes())
    html = report(tmp_path).read_text(encoding="utf-8")
    assert "By block influence layer " in html
    sections = re.findall(r'<section id="([a-z]+)"', html)
    assert sections == ["stack", "layers", "functions", "missing", "repeat"]
    assert html.partition('<section id="missing">')[2].count('class="missing"') == 6


def test_menus_name_every_scorer_and_task_and_show_the_first(run: Path, unpack: Callable[[str], str]) -> None:
    html = unpack(report(run).read_text(encoding="utf-8"))
    menu = html.partition('data-chooser="map"')[2].partition("</select>")[0]
    titles = re.findall(r">([^<]+)</option>", menu)
    assert titles[:2] == ["every scorer, all samples", "every scorer, recognition"]
    assert titles[-3:] == ["block influence", "modality block influence", "angular distance"]
    hidden = re.findall(r'<div class="panel" data-panel="map"( hidden)?>', html)
    assert hidden == ["", *[" hidden"] * (len(titles) - 1)]


def test_a_single_choice_has_no_menu() -> None:
    assert "<select" not in chooser("a", "show", [("one", "content")])
    assert pack("<b>") == pack("<b>")
    assert gzip.decompress(base64.b64decode(pack("<b>"))) == b"&lt;b&gt;"
    assert slug("A / b_c!") == "a-b-c"


def test_refuses_scores_by_task_of_another_depth(tmp_path: Path) -> None:
    tasks = {"ocr": (entry("a", 1, 2),)}
    write_document(
        tmp_path / "scores.json", Scores(num_layers=3, samples=8, scorers=(entry("a", 1, 2, 3),), tasks=tasks)
    )
    with pytest.raises(ArtifactError, match="scores of 2 layers, the region is of 3 layers"):
        gather(tmp_path)


def test_series_run_from_the_input_to_the_output(scores: Scores) -> None:
    names = [one.name for one in series_of(scores, "block-influence")]
    assert names[0] == "all samples"
    centres = [one.peak.centre for one in tasks_of(scores, "block-influence") if one.peak]
    assert all(first < second for first, second in pairwise(centres))
