"""The report's pictures of test scores, its gate, and the data of its browser of answers."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from striate.artifacts import (
    Difference,
    EvalRecord,
    GateResult,
    GateRow,
    Prediction,
    Retention,
    SuiteRecord,
    TaskScore,
    read_document,
    read_lines,
    write_document,
)
from striate.config import dump_config, load_config
from striate.reporting.charts.bars import Row, draw_bars
from striate.reporting.charts.drawing.svg import NARROW, WIDE
from striate.reporting.charts.retention_bars import draw_retention_bars, retained_rows
from striate.reporting.charts.scatter import COSTS, draw_scatter, items_per_second, points_of
from striate.reporting.data.correctness import Example, examples_of
from striate.reporting.data.examples import choose
from striate.reporting.data.run_artifacts import gather
from striate.reporting.html.thumbnails import Album, longest_side, thumbnail
from striate.reporting.sections.changes import p_value
from striate.reporting.sections.gate_table import draw_gate
from striate.reporting.sections.retention import draw_retention
from striate.stages.report import report
from striate.storage.atomic import write_text

MakeRun = Callable[[Path], Path]
LABELS = ("start", "tuned", "pruned")


@pytest.fixture(scope="module")
def run(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def html(run: Path, unpack: Callable[[str], str]) -> str:
    return unpack(report(run).read_text(encoding="utf-8")).replace("\u00a0", " ")


def asked(html: str) -> dict[str, Any]:
    found = json.loads(html.partition('id="asked">')[2].partition("</script>")[0])
    assert isinstance(found, dict)
    return found


def pictures(html: str) -> list[list[Any]]:
    blocks = re.findall(r'<script type="application/json" data-pictures>(.*?)</script>', html, re.DOTALL)
    return [picture for block in blocks for picture in json.loads(block)]


def test_every_model_and_task_has_its_bar_of_retention(html: str, run: Path) -> None:
    retention = read_document(run / "eval/retention.json", Retention)
    rows = [row for row in (*retention.rows, *retention.held) if (row.label, row.baseline) != ("pruned", "start")]
    assert [row.baseline for row in rows] == 7 * ["start"] + 7 * ["tuned"]
    for row in rows:
        assert row.retention is not None
        tip = f"{row.label} keeps {row.retention:.1f}% of {row.baseline}, 95% interval "
        tip += f"{row.retention_low:.1f} to {row.retention_high:.1f}, n = {row.n}"
        assert html.count(tip) >= 2


def kept(label: str, task: str, retention: float, pack: str = "a") -> Difference:
    return Difference(
        label=label,
        baseline="start",
        pack=pack,
        task=task,
        kind="visual",
        metric="exact",
        n=10,
        baseline_score=0.5,
        score=0.5,
        difference=0,
        low=-0.1,
        high=0.1,
        retention=retention,
        retention_low=retention - 10,
        retention_high=retention + 10,
    )


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_bars_are_as_long_as_their_retention_and_cut_at_the_edge(width: float) -> None:
    rows = retained_rows([kept("tuned", "x", 50), kept("tuned", "y", 1000), kept("tuned", "visual", 100, "*")])
    assert [row.task for row in rows] == ["visual", "x", "y"]
    drawn = "".join(draw_retention_bars(rows, width)[1])
    bars = [
        (float(x), float(wide))
        for x, wide in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"[^>]*class="bar tuned"', drawn)
    ]
    (hundred,) = re.findall(r'<line x1="([\d.]+)"[^>]*class="hundred"', drawn)
    assert bars[0][0] + bars[0][1] == pytest.approx(float(hundred), abs=0.02)
    assert bars[1][1] == pytest.approx(bars[0][1] / 2, abs=0.02)
    assert bars[2][1] == pytest.approx(bars[0][1] * 2.5, abs=0.05)
    assert bars[2][0] + bars[2][1] < width
    assert ">1000.0<" in drawn
    assert drawn.count("this bar goes on") == 1


def record(label: str, scores: list[float], size: int = 2**30, seconds: float = 10.0) -> EvalRecord:
    tasks = tuple(
        TaskScore(
            pack="p",
            task=f"t{place}",
            metric="exact",
            kind="visual",
            n=50,
            score=score,
            low=score - 0.0392,
            high=score + 0.0392,
        )
        for place, score in enumerate(scores)
    )
    reading = TaskScore(pack="p", task="n", metric="perplexity", kind="text", n=5, score=3, low=2, high=4)
    return EvalRecord(
        label=label,
        model=label,
        tasks=(*tasks, reading),
        visual=0.5,
        text=None,
        parameters=7_000_000,
        num_layers=4,
        size_bytes=size,
        seconds=seconds,
        peak_memory_gib=1,
    )


def test_points_are_means_with_the_records_own_interval() -> None:
    tuned = record("tuned", [0.4, 0.6, 0.5, 0.7]).model_copy(update={"intervals": {"visual": (0.51, 0.6)}})
    (point,) = points_of([tuned], "visual", COSTS[0])
    assert (point.cost, point.score) == (7.0, pytest.approx(55.0))
    assert point.ends == pytest.approx((51, 60))


def test_points_without_an_interval_have_no_whisker_and_say_so() -> None:
    points = points_of([record("start", [0.4]), record("tuned", [0.5])], "visual", COSTS[0])
    assert [point.ends for point in points] == [(40, 40), (50, 50)]
    drawn = "".join(draw_scatter(points, "visual", COSTS[0], WIDE)[1])
    assert "start: 40.0%, no 95% interval: too few pictures, or an older run; 7 parameters" in drawn
    assert "whisker" not in drawn


def test_an_axis_that_does_not_begin_at_nought_is_marked() -> None:
    def marks(*scores: float) -> int:
        points = points_of([record(str(score), [score]) for score in scores], "visual", COSTS[0])
        return "".join(draw_scatter(points, "visual", COSTS[0], WIDE)[1]).count("this axis does not begin at 0")

    # The upright axis of the first begins at 0; all have the same parameters, from 5.6 millions on.
    assert (marks(0.05, 0.8), marks(0.5, 0.6)) == (1, 2)


def test_a_missing_interval_is_told_wherever_it_would_stand() -> None:
    why = {"low": None, "high": None, "no_interval": "3 independent pictures are too few"}
    task = record("tuned", [0.4]).tasks[0].model_copy(update=why)
    drawn = "".join(draw_bars([Row("p", "t0", "exact", {"tuned": task})], WIDE)[1])
    assert "tuned: 40.0%, no 95% interval: 3 independent pictures are too few, n = 50" in drawn
    row = kept("tuned", "x", 80).model_copy(update={**why, "retention_low": None, "retention_high": None})
    assert "no 95% interval: 3 independent pictures are too few" in "".join(draw_retention_bars([row], WIDE)[1])
    table = draw_retention([row])
    assert "none: 3 independent pictures are too few" in table
    assert "80.0%" in table


def test_other_points_lack_tasks_or_cost() -> None:
    assert points_of([record("tuned", [0.4])], "text", COSTS[0]) == []
    assert points_of([record("tuned", [0.4], size=0)], "visual", COSTS[1]) == []
    assert items_per_second(record("tuned", [0.4, 0.5])) == pytest.approx(10.5)


def test_scatter_tells_every_model(html: str) -> None:
    trade = html.partition('<section id="trade">')[2].partition("</section>")[0]
    titles = re.findall(r">([^<]+)</option>", trade)
    assert titles[0] == "parameters, in millions, visual score"
    assert len(titles) == 6
    for label in LABELS:
        assert trade.count(f"<title>{label}: ") == 12
    assert "tuned: 61.4%, 95% interval 58.4 to 63.4; 255.1 parameters, in millions" in trade


def test_changes_come_with_mcnemars_p(html: str) -> None:
    changed = html.partition("Answers that changed")[2].partition("</details>")[0]
    cells = re.findall(r'<td class="number" data-label="([^"]+)">([^<]*)<', changed)
    assert ("wrong to right", "61") in cells
    assert ("right to wrong", "17") in cells
    assert ("McNemar&#x27;s p", "&lt; 0.0001") in cells
    assert ("could tell from", "5.2 points") in cells
    assert [p_value(value) for value in (None, 0.0, 0.0312, 0.5)] == ["–", "< 0.0001", "0.031", "0.50"]


def test_the_gate_stands_at_the_top(html: str) -> None:
    top = html.partition("<main>")[0]
    assert "Gate failed" in top
    assert "✓</span><span> pruned: visual&gt;=90, keeps 92.9% of tuned, 95% interval 90.2 to 95.5, n = 723." in top
    assert "keeps 99.4% of tuned, 95% interval 95.2 to 104.5, n = 243. The sample is too small to tell" in top
    assert "about 41\u202f000 items would do" in top


def test_a_gate_without_a_figure_says_so() -> None:
    row = GateRow(
        condition="text>=99",
        label="tuned",
        scope="text",
        threshold=99,
        retention=None,
        n=0,
        passed=False,
        resolvable=False,
    )
    drawn = str(draw_gate(GateResult(gate="text>=99", baseline="start", rows=(row,))))
    assert "no retention: start scores nothing" in drawn
    assert draw_gate(None) is None


def test_the_browser_holds_what_every_model_answered(html: str, run: Path) -> None:
    found = asked(html)
    assert found["models"] == list(LABELS)
    # It opens on what pruning changed.
    assert (found["model"], found["against"]) == (LABELS.index("pruned"), LABELS.index("tuned"))
    truth = {label: read_lines(run / f"eval/{label}.predictions.jsonl", Prediction) for label in LABELS}
    assert len(found["items"]) == 12
    answers = {(row.question.removeprefix("<image>\n"), row.answer) for row in truth["tuned"]}
    for item in found["items"]:
        assert (item["q"], item["a"][1]) in answers
        assert len(item["a"]) == len(item["s"]) == 3
    assert any(item.get("u") == [1, 0, 0] for item in found["items"])
    boxed = [item for item in found["items"] if "box" in item]
    assert boxed
    assert boxed[0]["box"] == [0.2, 0.25, 0.6, 0.75]


def test_pictures_are_in_the_page_once_and_not_as_images(html: str) -> None:
    found, shown = asked(html), pictures(html)
    places = [item["p"] for item in found["items"]]
    assert set(places) == set(range(len(shown)))
    assert len(shown) < len({(item["t"], item["p"]) for item in found["items"]}) + 1
    assert "<img" not in html.partition("<script>")[0]
    source, width, height = shown[0]
    kind, _, data = source.partition(";base64,")
    assert kind in ("data:image/png", "data:image/webp")
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (width, height)


def test_names_and_answers_can_not_end_the_data(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    for label in LABELS:
        path = folder / f"eval/{label}.predictions.jsonl"
        rows = read_lines(path, Prediction)
        nasty = [row.model_copy(update={"answer": "</script><script>alert(1)</script><!--"}) for row in rows]
        write_text(path, "".join(f"{row.model_dump_json()}\n" for row in nasty))
    html = report(folder).read_text(encoding="utf-8")
    assert "<script>alert" not in html
    assert html.count("<script") == html.count("</script>")
    assert asked(html)["items"][0]["a"][0] == "</script><script>alert(1)</script><!--"


def example(pack: str, task: str, place: int, start: bool, tuned: bool) -> Example:
    def answer(right: bool) -> Prediction:
        image = f"{pack}{place}"
        return Prediction(
            id=str(place), pack=pack, task=task, metric="exact", question="?", image=image, score=float(right)
        )

    return Example(answer(start), {"start": answer(start), "tuned": answer(tuned)})


def test_where_not_all_fit_changed_answers_come_first_then_a_spread() -> None:
    same = [example("a", "x", place, True, True) for place in range(50)]
    changed = [example("a", "x", 90, False, True), example("a", "x", 91, True, False)]
    other = [example("a", "y", 0, True, True), example("b", "z", 0, False, False)]
    everything = [*same, *changed, *other]
    chosen = choose(everything, 5)
    assert [one.first.id for one in chosen if one.changed] == ["90", "91"]
    assert {one.first.task for one in chosen} == {"x", "y", "z"}
    assert [everything.index(one) for one in chosen] == sorted(everything.index(one) for one in chosen)
    assert choose(everything, 99) == everything
    assert choose(same, 0) == []


def test_questions_that_a_model_lacks_and_texts_without_answers_are_left_out() -> None:
    def row(place: int, metric: str = "exact") -> Prediction:
        return Prediction(id=str(place), pack="p", task="t", metric=metric, question="?", score=1.0)

    found = examples_of({"start": [row(0), row(1), row(2, "perplexity")], "tuned": [row(1), row(2, "perplexity")]})
    assert [one.first.id for one in found] == ["1"]
    assert examples_of({}) == []


def test_the_page_tells_how_many_questions_it_leaves_out(html: str) -> None:
    assert "12 of 36 questions that every model answered." in html
    assert "so this is no random sample" in html


def test_no_examples_means_no_browser(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    config = folder / "config.yaml"
    write_text(config, config.read_text().replace("examples: 12", "examples: 0"))
    page = report(folder).read_text(encoding="utf-8")
    assert "report.examples is 0" in page
    assert 'id="browser"' not in page


def test_thumbnails_are_small_and_tiny_pictures_stay_exact(tmp_path: Path) -> None:
    Image.effect_noise((1600, 800), 80).convert("RGB").save(tmp_path / "large.jpg")
    Image.new("RGBA", (28, 28), (255, 0, 0, 0)).save(tmp_path / "tiny.png")
    write_text(tmp_path / "broken.png", "not a picture")
    large, tiny = thumbnail(tmp_path / "large.jpg", 160), thumbnail(tmp_path / "tiny.png", 160)
    assert large
    assert large[0].startswith("data:image/webp;base64,")
    assert large[1:] == (160, 80)
    assert tiny
    copied = Image.open(io.BytesIO(base64.b64decode(tiny[0].removeprefix("data:image/png;base64,"))))
    assert (copied.size, copied.getpixel((3, 3))) == ((28, 28), (255, 255, 255))
    assert thumbnail(tmp_path / "broken.png", 160) is None
    assert [longest_side(pictures) for pictures in (1, 60, 61, 400, 2000)] == [400, 400, 256, 256, 160]


def test_an_album_shares_pictures_and_stops_at_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        Image.effect_noise((200, 200), 90).save(tmp_path / f"{name}.png")
    album = Album(tmp_path, (), 160)
    assert [album.add(name, "pack") for name in ("a.png", "b.png", "a.png", "gone.png")] == [0, 1, 0, None]
    assert album.add(str(tmp_path / "a.png"), "other") == 0
    monkeypatch.setattr("striate.reporting.html.thumbnails.BUDGET_BYTES", 10)
    assert album.add("c.png", "pack") is None
    assert album.left_out == 1


def test_further_figures_and_unreadable_answers_are_told(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    path = folder / "eval/tuned.json"
    whole = read_document(path, EvalRecord)
    first = whole.tasks[0].model_copy(update={"details": {"yes_rate": 0.512, "f1": 0.8}})
    write_text(path, whole.model_copy(update={"tasks": (first, *whole.tasks[1:])}).model_dump_json())
    page = report(folder).read_text(encoding="utf-8").replace("\u00a0", " ")
    assert "yes rate 0.512, f1 0.800" in page
    assert "1 of 241" in page


def test_harnesses_have_their_own_table(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    suite = SuiteRecord(
        label="tuned",
        model="m",
        harness="lm-eval",
        harness_version="0.4.9",
        packages={},
        tasks=("arc",),
        samples={"arc": 1000},
        figures={"arc": {"acc": 0.612, "acc_stderr": 0.0154, "acc_norm": 0.5}},
        seconds=3.0,
    )
    write_document(folder / "eval/suites/tuned.lm-eval-arc.json", suite)
    page = report(folder).read_text(encoding="utf-8")
    shown = page.partition('<section id="harnesses">')[2].partition("</section>")[0]
    cells = re.findall(r">([^<>]+)</(?:td|th|span)>", shown.partition("<tbody>")[2])
    assert cells == [
        *("arc", "tuned", "lm-eval 0.4.9", "acc", "1\u202f000", "0.612", "0.0154"),
        *("arc", "tuned", "lm-eval 0.4.9", "acc_norm", "1\u202f000", "0.500", "–"),
    ]


def test_a_run_with_one_model_has_a_browser_without_comparison(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    for name in ("tuned.json", "pruned.json", "tuned.predictions.jsonl", "pruned.predictions.jsonl", "retention.json"):
        (folder / "eval" / name).unlink()
    page = report(folder).read_text(encoding="utf-8")
    assert asked(page)["models"] == ["start"]
    assert re.findall(r'data-change="(\w+)"', page.partition("<script>")[0]) == ["wrong", "unparsed", "all"]
    assert 'id="by-against"' not in page
    assert gather(folder).labels == ["start"]


OTHER = "tuned all: 7B"


@pytest.fixture(scope="module")
def compared(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that holds a model of `evaluate.others` against its own."""
    folder = make_run(tmp_path_factory.mktemp("others") / "run")
    config = load_config(folder / "config.yaml", [f"evaluate.others={json.dumps({OTHER: 'runs/all/checkpoint'})}"])
    write_text(folder / "config.yaml", dump_config(config))
    evals = folder / "eval"
    record = read_document(evals / "tuned.json", EvalRecord)
    write_document(evals / f"{OTHER}.json", record.model_copy(update={"label": OTHER, "parameters": 200_000_000}))
    write_text(evals / f"{OTHER}.predictions.jsonl", (evals / "tuned.predictions.jsonl").read_text(encoding="utf-8"))
    retention = read_document(evals / "retention.json", Retention)
    rows = [row.model_copy(update={"label": OTHER}) for row in retention.rows if row.label == "tuned"]
    write_document(evals / "retention.json", retention.model_copy(update={"rows": (*retention.rows, *rows)}))
    return folder


def test_models_of_others_are_wherever_the_runs_own_are(compared: Path, unpack: Callable[[str], str]) -> None:
    html = unpack(report(compared).read_text(encoding="utf-8"))

    def section(name: str) -> str:
        return html.partition(f'<section id="{name}">')[2].partition("</section>")[0]

    chart = html.partition('id="figure-verdict"')[2].partition("</figure>")[0]
    assert chart.count(f"{OTHER}: visual score ") == chart.count("tuned: visual score ") > 0
    for name in ("tasks", "text", "trade"):
        assert section(name).count(f"{OTHER}: ") == section(name).count("pruned: ") > 0
    assert html.count(f"{OTHER} keeps ") == html.count("tuned keeps ")
    found = asked(html)
    assert found["models"] == [*LABELS, OTHER]
    assert len(found["items"][0]["a"]) == 4
    assert f">{OTHER}</option>" in section("answers")
    assert f'"key other-tuned-all-7b"></i>{OTHER}' in section("tasks")


def test_models_of_others_have_a_colour_of_their_own(compared: Path) -> None:
    html = report(compared).read_text(encoding="utf-8")
    name = "other-tuned-all-7b"
    assert f"svg .bar.{name}{{fill:var(--s3)}}" in html
    assert 'class="bar tuned all' not in html
    assert asked(html)["classes"] == [*LABELS, name]


def test_a_page_without_a_config_shows_what_was_compared(compared: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(compared, tmp_path / "run"))
    (folder / "config.yaml").unlink()
    assert gather(folder).labels == [*LABELS, OTHER]


def test_models_that_were_compared_are_shown_though_the_config_names_them_no_longer(
    compared: Path, make_run: MakeRun, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(compared, tmp_path / "run"))
    shutil.copy(make_run(tmp_path / "plain") / "config.yaml", folder / "config.yaml")
    assert OTHER not in (folder / "config.yaml").read_text(encoding="utf-8")
    assert gather(folder).labels == [*LABELS, OTHER]
    html = report(folder).read_text(encoding="utf-8")
    assert asked(html)["models"] == [*LABELS, OTHER]
    verdict = html.partition('id="figure-verdict"')[2].partition("</figure>")[0]
    assert verdict.count(f"{OTHER}: visual score") > 0


def test_floors_stand_on_the_first_chart_where_they_were_measured(
    make_run: MakeRun, tmp_path: Path, unpack: Callable[[str], str], html: str
) -> None:
    folder = make_run(tmp_path / "run")
    place = folder / "eval" / "retention.json"
    retention = read_document(place, Retention)
    floors = {"start": 0.25, "tuned": 0.4}

    def asked_blind(rows: tuple[Difference, ...]) -> tuple[Difference, ...]:
        seen = {"no_above_floor": "", "above_floor": 90.0, "above_floor_low": 80.0, "above_floor_high": 99.0}
        return tuple(
            row.model_copy(update={**seen, "floor": floors[row.baseline]}) if row.kind == "visual" else row
            for row in rows
        )

    changed = {"rows": asked_blind(retention.rows), "held": asked_blind(retention.held)}
    write_document(place, retention.model_copy(update=changed))
    chart = unpack(report(folder).read_text(encoding="utf-8")).partition('id="figure-verdict"')[2]
    chart = chart.partition("</figure>")[0].replace("\u00a0", " ")
    told = "start without its pictures (floor): 25.0%", "tuned without its pictures (floor): 40.0%"
    wide = chart.partition('class="wide"')[2].partition("</svg>")[0]
    assert [wide.count(f"<title>{one}</title>") for one in told] == [1, 1]
    assert wide.count('class="mark"') == 2
    assert chart.count("; ".join(told)) == chart.count("aria-label") == 2
    assert '<i class="key floor"></i>A mark across a bar is its floor' in chart
    # The mark stands where a bar of the floor's length would end.
    (start,) = re.findall(r'x="([\d.]+)" y="[\d.]+" width="([\d.]+)"[^>]*class="bar start"', wide)[:1]
    (mark,) = re.findall(r'x1="([\d.]+)"[^>]*class="mark"', wide)[:1]
    assert float(mark) == pytest.approx(float(start[0]) + float(start[1]) * 25 / 31.2, abs=0.6)
    plain = html.partition('id="figure-verdict"')[2].partition("</figure>")[0]
    assert "floor" not in plain
