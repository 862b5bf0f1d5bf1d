"""The page's section on the cuts of a greedy ranking: the curve, the table, and when there is none."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from striate.artifacts import Cut, PruneRecord, read_document, write_document
from striate.reporting.charts.cut_costs import added_costs, draw_cut_costs
from striate.reporting.charts.drawing.svg import NARROW, WIDE
from striate.stages.report import report

CUTS = (
    Cut(
        layer=9,
        before={"visual": 0.5, "text": 2.0},
        after={"visual": 0.45, "text": 2.1},
        candidates={9: 1.275, 17: 1.3, 21: 1.5},
    ),
    Cut(
        layer=21,
        before={"visual": 0.45, "text": 2.1},
        after={"visual": 0.75, "text": 2.4},
        candidates={17: 1.6, 21: 1.575},
    ),
)


def test_costs_are_what_came_on_top_of_no_cut() -> None:
    assert added_costs(CUTS) == {
        "visual": pytest.approx([0.0, -0.05, 0.25]),
        "text": pytest.approx([0.0, 0.1, 0.4]),
    }


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_curves_go_from_no_cut_to_the_last(width: float) -> None:
    height, shapes = draw_cut_costs(CUTS, 1, width)
    drawn = "".join(shapes)
    paths = re.findall(r'<path d="M([^"]+)" class="curve (first|second)"', drawn)
    assert [kind for _, kind in paths] == ["first", "second"]
    visual, text = ([tuple(map(float, point.split())) for point in path.split("L")] for path, _ in paths)
    assert len(visual) == len(text) == 3
    # Both begin at nothing, the dearest is at the top, the cheapest at the bottom, and all is within the picture.
    assert visual[0] == text[0]
    ends = [y for _, y in (*visual, *text)]
    assert (min(ends), max(ends)) == (text[2][1], visual[1][1])
    share = (max(ends) - text[0][1]) / (max(ends) - min(ends))
    assert share == pytest.approx(0.05 / 0.45, abs=0.01)
    assert all(0 < x < width and 0 < y < height for x, y in (*visual, *text))
    assert "1 removed: visual 0.0000, text 0.0000" in drawn
    assert "3 removed, last layer 21: visual +0.2500, text +0.4000" in drawn


def test_one_kind_that_costs_nothing_can_be_drawn() -> None:
    cut = Cut(layer=3, before={"text": 0.25}, after={"text": 0.25}, candidates={3: 0.25})
    _, shapes = draw_cut_costs((cut,), 0, WIDE)
    assert "1 removed, last layer 3: text 0.0000" in "".join(shapes)


def test_the_page_shows_cuts_where_layers_were_ranked_so(
    make_run: Callable[[Path], Path], unpack: Callable[[str], str], tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run")
    assert 'id="cuts"' not in report(run).read_text(encoding="utf-8")
    record = read_document(run / "prune.json", PruneRecord)
    ranked = record.model_copy(update={"cuts": CUTS, "scorer": "interlace, then answer-loss"})
    write_document(run / "prune.json", ranked)
    page = unpack(report(run).read_text(encoding="utf-8"))
    section = page.partition('<section id="cuts">')[2].partition("</section>")[0]
    # Three layers went, and one of them was no cut.
    assert "1 layer that the region gives up went before" in section
    assert "in answer loss, ranked by interlace, then answer-loss" in section
    cells = [re.sub("<[^>]+>", "", row) for row in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", section)]
    assert cells[-14:-7] == ["2", "9", "0.4500", "−0.0500", "2.1000", "+0.1000", "17 (+0.0250)"]
    assert cells[-7:] == ["3", "21", "0.7500", "+0.3000", "2.4000", "+0.3000", "17 (+0.0250)"]
    write_document(run / "prune.json", ranked.model_copy(update={"scorer": "answer-accuracy"}))
    assert "in share of answer tokens that are not the likeliest" in report(run).read_text(encoding="utf-8")
