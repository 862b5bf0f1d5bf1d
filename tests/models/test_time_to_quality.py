"""The benchmark of the time to quality: both ways learn the same, and what is told of their logs."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import quality_arms
import time_to_quality
from quality_picture import draw
from time_to_quality import latest, starting, table, until

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def given(tiny_llava_dir: Path, pack_dir: Path) -> Namespace:
    settings = {"steps": 3, "batch": 4, "every": 2, "held": "20%", "samples": None, "workers": 0}
    return Namespace(model=str(tiny_llava_dir), data=pack_dir.parent, **settings)


def test_transformers_trainer_learns_what_striate_does_with_all_layers(given: Namespace) -> None:
    """Else the ways would be timed on their way to different models."""
    hf, own = (quality_arms.trained(name, given) for name in ("hf", "all"))
    assert (hf["samples"], hf["held_out"]) == (own["samples"], own["held_out"])
    assert [point["step"] for point in hf["points"]] == [point["step"] for point in own["points"]] == [2, 3]
    for one, other in zip(hf["points"], own["points"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=2e-4)
    # It learned, and more so with the next step.
    assert hf["points"][0]["loss"] != pytest.approx(hf["points"][1]["loss"], abs=2e-4)


def test_measuring_takes_no_part_in_the_seconds(given: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {"loss": 1.0, "exact_match": 0.5, "seconds": 0.0}

    def slowly(*taken: Any) -> dict[str, float]:
        quality_arms.time.sleep(1.0)
        return measured

    monkeypatch.setattr(quality_arms.HeldOutLoss, "measure", slowly)
    line = quality_arms.trained("hf", given)
    assert len(line["seconds"]) == 3
    assert line["points"][-1]["at_s"] == pytest.approx(sum(line["seconds"]), abs=0.02)
    # Twice asked, once between steps.
    assert line["seconds"][2] < 1.0


POINTS = [
    {"step": 10, "at_s": 1.0, "loss": 2.0, "exact_match": 0.30, "seconds": 0.1},
    {"step": 20, "at_s": 2.0, "loss": 1.5, "exact_match": 0.50, "seconds": 0.1},
    {"step": 30, "at_s": 3.0, "loss": 1.6, "exact_match": 0.49, "seconds": 0.1},
]


def test_until_is_the_first_point_that_is_as_good() -> None:
    assert until(POINTS, "exact_match", 0.5) == 2.0
    assert until(POINTS, "exact_match", 0.49) == 2.0
    assert until(POINTS, "exact_match", 0.51) is None
    assert until(POINTS, "loss", 1.6) == 2.0
    assert until(POINTS, "loss", 1.4) is None


def test_starting_is_what_the_first_steps_took_over_usual_ones() -> None:
    assert starting([5.0, 1.0, *[0.1] * 98]) == pytest.approx(5.8)
    assert starting([0.1] * 5) == pytest.approx(0.0)


def test_the_table_tells_what_is_missing_and_what_failed() -> None:
    more = {"seconds": [0.1] * 30, "beside_s": 4.0, "held_out": 60}
    hf = {"name": "hf", "points": POINTS, **more}
    faster = {"name": "all", "points": [{**one, "at_s": one["at_s"] / 2} for one in POINTS], **more}
    worse = {"name": "uniform:25%", "points": POINTS[:1], **more}
    failed = {"name": "liger", "error": "no | kernels"}
    rows = {row.split(" | ")[0][2:]: row.split(" | ")[1:] for row in table([hf, failed, faster, worse]).splitlines()}
    assert rows["hf"][-4:-1] == ["2.0 (2.0)"] * 3
    assert rows["all"][4:] == ["60", "49.0", "1.6000", "1.0 (1.0)", "1.0 (1.0)", "1.0 (1.0)", "1.0 (1.0) |"]
    assert rows["uniform:25%"][-4:] == ["not reached"] * 3 + ["not reached |"]
    assert rows["liger"][0] == "no / kernels"
    assert len({len(cells) for name, cells in rows.items() if not name.startswith("--")}) == 1
    assert "hf is missing" in table([faster])
    slow = {**hf, "seconds": [1.0, *[0.1] * 29]}
    assert "| 2.0 (1.1) |" in table([slow])


def test_arms_run_apart_and_later_ones_are_added(
    given: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lines.jsonl"
    lines = [
        {"name": name, "points": POINTS, "seconds": [0.1], "beside_s": 1.0, "held_out": 60}
        for name in ("hf", "all", "hf")
    ]
    out.write_text("".join(json.dumps({**line, "n": n}) + "\n" for n, line in enumerate(lines)))
    assert [(line["name"], line["n"]) for line in latest(out)] == [("hf", 2), ("all", 1)]
    picture = tmp_path / "lines.svg"
    words = [given.model, str(given.data), "--tiny", "--arms", "uniform:25%", "--out", str(out)]
    words += ["--picture", str(picture)]
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setattr(sys, "argv", ["time_to_quality.py", *words])
    time_to_quality.main()
    added = latest(out)[-1]
    assert added["name"] == "uniform:25%", added
    assert [point["step"] for point in added["points"]] == [2, 4]
    assert "| uniform:25% | " in capsys.readouterr().out
    drawn = ElementTree.fromstring(picture.read_text(encoding="utf-8"))
    assert sorted(len(curve.attrib["points"].split()) for curve in drawn.iter(f"{SVG}polyline")) == [2, 3, 3]
    assert "striate, all layers: 50.0% after 2.0 s" in "".join(drawn.itertext())


def test_points_lie_where_their_seconds_and_scores_are() -> None:
    drawn = ElementTree.fromstring(draw([{"name": "hf", "points": POINTS}], "exact_match", 0.4))
    [curve] = drawn.iter(f"{SVG}polyline")
    places = [tuple(map(float, pair.split(","))) for pair in curve.attrib["points"].split()]
    # Seconds apart alike; 30, 50 and 49%.
    assert places[1][0] - places[0][0] == pytest.approx(places[2][0] - places[1][0], abs=0.2)
    assert (places[2][1] - places[1][1]) / (places[0][1] - places[1][1]) == pytest.approx(0.05, abs=0.002)
    [target] = [one for one in drawn.iter(f"{SVG}line") if one.attrib["class"] == "hundred"]
    assert float(target.attrib["y1"]) == pytest.approx((places[0][1] + places[1][1]) / 2, abs=0.2)
