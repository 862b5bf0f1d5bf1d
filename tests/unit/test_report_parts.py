"""The parts of the report: words for numbers, markup, curves, the choice of examples, pictures."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path

import pytest

from striate import wording
from striate.artifacts import LayerScores, Region, Scores, Trainable, TrainRecord, write_document
from striate.errors import ArtifactError
from striate.reporting.charts.drawing.axes import nice_step
from striate.reporting.charts.drawing.colours import DARK, LIGHT, STEPS, step_of, theme_css
from striate.reporting.charts.drawing.layout import columns_of, lay_out, scale_of
from striate.reporting.charts.drawing.svg import NARROW, WIDE
from striate.reporting.charts.loss_curve import TOP, draw_loss, points_of, smooth
from striate.reporting.data.run_artifacts import LogStep, gather, read_log
from striate.reporting.html.box_overlay import read_box
from striate.reporting.html.markup import Html, tag
from striate.reporting.html.thumbnails import find_picture
from striate.reporting.sections.trained import draw_course
from striate.storage.atomic import write_text


def test_markup_escapes_children_and_attributes() -> None:
    made = tag("p", "<b>", Html("<i>kept</i>"), None, ["a & b"], class_="x", data_tip='"<', hidden=True, title=None)
    assert made == '<p class="x" data-tip="&quot;&lt;" hidden>&lt;b&gt;<i>kept</i>a &amp; b</p>'
    assert tag("img", src="data:,") == '<img src="data:,">'
    assert tag("rect", x=1.0, width=2.346) == '<rect x="1" width="2.35"></rect>'


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (wording.signed(-0.04), "0.0"),
        (wording.signed(-3.14159), "−3.1"),
        (wording.points(0.0611), "+6.1 points"),
        (wording.points(-0.0123, "perplexity"), "−1.2%"),
        (wording.span(-0.019, 0.011), "−1.9 to +1.1"),
        (wording.score(0.5449), "54.5%"),
        (wording.span(-0.02, 0.05, "perplexity"), "−2.0% to +5.1%"),
        (wording.score(3.2174, "perplexity"), "25.0"),
        (wording.layer_list((0, 4, 5, 8, 9, 10)), "0, 4, 5, 8–10"),
        (wording.named_layers((4, 5, 7)), "layers 4, 5, 7"),
        (wording.named_layers([1]), "layer 1"),
        (wording.named_layers(()), "no layers"),
        (wording.count(1234567), "1\u202f234\u202f567"),
        (wording.amount(1, "layer"), "1 layer"),
        (wording.duration(4.23), "4.2 s"),
        (wording.duration(185), "3 min 05 s"),
        (wording.duration(7805), "2 h 10 min"),
        (wording.gibibytes(0.05), "51 MiB"),
        (wording.gibibytes(3.21), "3.21 GiB"),
        (wording.size(510_400_000), "510.4 MB"),
        (wording.size(999), "999 bytes"),
        (wording.plain_number(0.04671), "0.0467"),
        (wording.plain_number(-0.55), "−0.550"),
        (wording.plain_number(0.0002), "2e−4"),
        (wording.plain_number(0), "0"),
        (wording.plain_number(math.inf), "inf"),
        (wording.shorten("a long sentence", 7), "a long…"),
    ],
)
def test_numbers_in_words(value: str, text: str) -> None:
    assert value == text


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
@pytest.mark.parametrize("name", ["ink", "muted", "right", "wrong", "tuned", "s0", "s1"])
def test_text_colours_stand_out(scheme: dict[str, str], name: str) -> None:
    light, dark = sorted([luminance(scheme[name]), luminance(scheme["paper"])], reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_ramp_runs_from_first_to_last_step() -> None:
    assert [step_of(share) for share in (-1, 0, 0.5, 1, 2)] == [0, 0, (STEPS - 1) // 2, STEPS - 1, STEPS - 1]
    assert theme_css().count("--h0:#f1eee2") == 1


def test_scale_is_logarithmic_only_for_wide_positive_scores() -> None:
    assert [scale_of(values).log for values in ([0.1, 0.4], [0.1, 0.6], [-0.1, 0.6])] == [False, True, False]
    assert scale_of([0.01, 1.0]).share(0.1) == pytest.approx(0.5)
    assert scale_of([2.0, 4.0]).share(2.5) == pytest.approx(0.25)
    assert scale_of([3.0, 3.0]).share(3.0) == 0.5


def layer_scores(name: str, layers: int, parts: tuple[str, ...] = ()) -> LayerScores:
    values = tuple(0.1 + 0.01 * layer for layer in range(layers))
    return LayerScores(
        scorer=name, values=values, low=values, high=values, parts=dict.fromkeys(parts, values), samples=8
    )


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("scorers", [0, 1, 4, 8])
def test_columns_stand_side_by_side_inside_the_picture(width: float, scorers: int) -> None:
    columns = columns_of(
        [layer_scores(f"scorer-{place}", 40, ("image", "text")[: place % 3]) for place in range(scorers)]
    )
    layout = lay_out(width, 40, columns)
    edges = [30 + layout.stack_width, *layout.lefts, width]
    assert layout.stack_width >= 55
    assert all(right - left >= layout.cell - 1e-6 for left, right in pairwise(edges[1:]))
    assert edges == sorted(edges)
    assert layout.y(39) == layout.top < layout.y(0) < layout.bottom


def test_long_logs_are_averaged_and_keep_their_mean() -> None:
    log = [LogStep(step=step, loss=float(step)) for step in range(1, 1001)]
    points = points_of(log, lambda step: step.loss, most=250)
    assert len(points) == 250
    assert (points[0].first, points[0].last, points[0].value) == (1, 4, 2.5)
    assert sum(point.value for point in points) / 250 == pytest.approx(500.5)
    assert [point.value for point in smooth(points_of(log[:3], lambda step: step.loss))] == [1.5, 2.0, 2.5]
    assert points_of([LogStep(step=1, loss=math.nan)], lambda step: step.loss) == []


def test_held_out_samples_have_a_curve_of_their_own() -> None:
    log = [LogStep(step=step, loss=3.0, validation={"loss": 6.0} if step % 5 == 0 else None) for step in range(1, 21)]
    _, shapes = draw_loss(log, 600.0)
    drawn = "".join(map(str, shapes))
    assert drawn.count("held-out loss 6") == drawn.count("<circle") == 4
    assert [drawn.count(word) for word in (">training<", ">held out<")] == [1, 1]
    # The larger loss lies inside the picture too, in its upper half.
    tops = {float(y) for y in re.findall(r'<circle cx="[^"]*" cy="([^"]*)"', drawn)}
    assert len(tops) == 1
    assert TOP <= tops.pop() < TOP + 230 / 2
    plain = "".join(map(str, draw_loss([step.model_copy(update={"validation": None}) for step in log], 600.0)[1]))
    assert "held" not in plain


@pytest.mark.parametrize(("highest", "step"), [(1.0, 0.25), (3.0, 1.0), (0.0002, 5e-5), (870.0, 250.0)])
def test_axis_steps_are_round(highest: float, step: float) -> None:
    assert nice_step(highest) == pytest.approx(step)


def test_the_learning_rate_is_told_where_it_was_noted() -> None:
    trainable = Trainable(
        method="lora", region=Region(layers=(1,), num_layers=4, spec="ids:1"), components=(), layers=()
    )
    figures = {
        "samples": 4,
        "steps": 2,
        "epochs": 1,
        "first_loss": 2,
        "last_loss": 1,
        "seconds": 3,
        "peak_memory_gib": 1,
    }
    check = {"whole": 2.65, "ruled": 2.46, "allowed": 0.3, "samples": 64, "answer_tokens": 9, "held_out": False}
    noted, earlier = (
        TrainRecord.model_validate({"trainable": trainable, "proof": "", "peak_memory_gib": 1, **figures, **more})
        for more in ({"lr": 1.6e-3, "whole_steps": 0, "image_check": check}, {})
    )
    told = draw_course(noted)
    assert "learning rate" in told
    assert "0.0016" in told
    assert "loss as image tokens skip layers" in told
    assert "2.65 → 2.46 (n = 64)" in told
    assert "steps with image tokens in all layers" in told
    for name in ("learning rate", "image tokens"):
        assert name not in draw_course(earlier)


def test_pictures_are_found_in_their_pack(tmp_path: Path) -> None:
    for pack in ("one", "two"):
        write_text(tmp_path / pack / "images" / "0.png", pack)
    packs = (str(tmp_path / "one"), str(tmp_path / "two"))
    assert find_picture("images/0.png", "two", tmp_path, packs) == tmp_path / "two" / "images" / "0.png"
    absolute = tmp_path / "one" / "images" / "0.png"
    assert find_picture(str(absolute), "two", tmp_path, ()) == absolute
    assert find_picture("images/9.png", "two", tmp_path, packs) is None


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[0.1, 0.2, 0.3, 0.4]", (0.1, 0.2, 0.3, 0.4)),
        ("the box is 0 0 1 0.5.", (0.0, 0.0, 1.0, 0.5)),
        ("[0.3, 0.2, 0.1, 0.4]", None),
        ("[10, 20, 30, 40]", None),
        ("no box", None),
    ],
)
def test_boxes_are_read_from_answers(text: str, box: tuple[float, float, float, float] | None) -> None:
    assert read_box(text) == box


def test_a_log_that_was_cut_short_keeps_its_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "train_log.jsonl"
    write_text(path, '{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert [step.step for step in read_log(path)] == [1]
    write_text(path, 'nothing\n{"step": 2, "loss": 1.0}\n')
    with pytest.raises(ArtifactError, match="line 1 is not a training step"):
        read_log(path)


def test_refuses_scores_of_another_model(tmp_path: Path) -> None:
    write_document(tmp_path / "region.json", Region(layers=(0,), num_layers=4, spec="ids:0"))
    write_document(tmp_path / "scores.json", Scores(num_layers=6, samples=8, scorers=(layer_scores("one", 6),)))
    with pytest.raises(ArtifactError, match="scores of 6 layers, the region is of 4 layers"):
        gather(tmp_path)
