"""The report page, from a fake run folder that holds every artifact."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from striate.artifacts import AskingFacts, EvalRecord, Region, Retention, Scores, read_document, write_document
from striate.errors import ArtifactError
from striate.stages.report import report
from striate.storage.atomic import write_text

MakeRun = Callable[[Path], Path]
LABELS = ("start", "tuned", "pruned")
REGION = Region(layers=(0, 3, 7, 11), num_layers=16, spec="uniform:25%")


class Page(HTMLParser):
    """What the tests ask of a page: ids, addresses, text, open tags."""

    VOID = frozenset({"meta", "link", "img", "br", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.scripts = 0
        self.text = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.scripts += tag == "script" and ("type", "application/json") not in attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data if self.open and self.open[-1] in ("span", "b", "small") else f" {data}"


@pytest.fixture(scope="module")
def run(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def html(run: Path, unpack: Callable[[str], str]) -> str:
    return unpack(report(run).read_text(encoding="utf-8")).replace("\u00a0", " ")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_asks_nothing_of_the_network(html: str, page: Page) -> None:
    assert page.addresses
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(", html)
    assert "default-src 'none'" in html.replace("&#x27;", "'")


def test_is_well_formed_with_unique_ids(page: Page) -> None:
    assert page.open == []
    assert len(page.ids) == len(set(page.ids)) > 10


def test_escapes_what_comes_from_data(html: str, page: Page) -> None:
    assert page.scripts == 1
    assert "<script>alert" not in html
    assert html.count("&lt;script&gt;alert") > 12


def test_same_artifacts_give_the_same_bytes(run: Path, tmp_path: Path) -> None:
    assert report(run, tmp_path / "again.html").read_bytes() == report(run).read_bytes()


def test_the_verdict_comes_first_in_plain_words(page: Page) -> None:
    top = " ".join(page.text.partition("Every figure, with its interval")[0].replace(" .", ".").split())
    assert "8 of 30 layers trained, 3.2% of the parameters: 0, 3, 7, 11, 15, 18, 22, 26" in top
    assert "3 removed: 9, 17, 21" in top
    tuned = "Tuning 8 of 30 layers raised the visual score by 33.1 points"
    pruned = "Removing 3 layers lowered the visual score by 4.6 points (92.9% of tuned is left)"
    for sentence in (tuned, pruned):
        assert f"{sentence} and made no measurable difference to the text score" in top
    assert "For that the pruned model is 4.2% smaller" in top
    # Intervals are asked for: they stand in the chart and folded below it.
    assert "show 95% intervals" in top


def test_the_first_chart_holds_every_model_against_what_it_came_from(html: str) -> None:
    chart = html.partition('id="figure-verdict"')[2].partition("</figure>")[0]
    for told in (
        "start: visual score 31.2%<",
        "tuned: visual score 64.4%, +33.1 points against start, 95% interval +30.0 to +37.3, n = 723<",
        "pruned: visual score 59.8%, −4.6 points against tuned, 95% interval −7.7 to −0.4, n = 723<",
        "pruned: text score 50.9%, −0.3 points against tuned",
    ):
        assert told in chart
    # What pruning cost is an outline from the end of the pruned model's bar to that of the tuned one.
    wide = chart.partition('class="wide"')[2].partition("</svg>")[0]
    bars = {
        kind: (float(x), float(width))
        for x, width, kind in re.findall(
            r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"[^>]*class="((?:bar|lost) \w+)',
            wide.partition("text score")[0],
        )
    }
    (tuned, pruned, lost) = (bars[kind] for kind in ("bar tuned", "bar pruned", "lost pruned"))
    assert lost[0] == pytest.approx(sum(pruned), abs=0.02)
    assert sum(lost) == pytest.approx(sum(tuned), abs=0.02)
    assert wide.count("on-demand") > 4


def test_headline_tells_scores_difference_interval_and_count(page: Page) -> None:
    assert "Tuning 8 of 30 layers takes the visual score from 31.2% to 64.4%" in page.text
    assert "(+33.1 points against start, 95% interval +30.0 to +37.3, n = 723)" in page.text
    unchanged = "text shows no measurable change (−0.3 points against {}, 95% interval −3.4 to +3.9, n = 243)"
    assert unchanged.format("start") in page.text


def test_headline_holds_the_pruned_model_against_the_tuned_one(page: Page, html: str) -> None:
    cost = "Removing 3 layers takes the visual score from 64.4% to 59.8% "
    assert cost + "(−4.6 points against tuned, 95% interval −7.7 to −0.4, n = 723)" in page.text
    assert "text shows no measurable change (−0.3 points against tuned, 95% interval −3.4 to +3.9" in page.text
    top = html.partition("<main>")[0]
    assert top.index("Tuning 8 of 30") < top.index("Removing 3 layers takes") < top.index("It saves ")
    assert "59.8%" in top
    assert "+28.6 points" not in top


def test_headline_tells_what_pruning_saved(page: Page) -> None:
    saved = "It saves 4.2% of the parameters (255\u202f123\u202f456 to 244\u202f503\u202f456) and 42.5 MB of 1.0 GB"
    assert saved in page.text.replace("  ", " ")


def test_headline_tells_the_healed_model_and_the_one_before_it(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    config = folder / "config.yaml"
    write_text(config, config.read_text().replace("  steps: null", "  steps: 5", 1))
    path = folder / "eval/retention.json"
    whole = read_document(path, Retention)
    rows, held = (
        tuple(row.model_copy(update={"label": "unhealed"}) for row in found if row.label == "pruned")
        for found in (whole.rows, whole.held)
    )
    against = {**whole.against, "unhealed": "tuned"}
    write_document(
        path,
        whole.model_copy(update={"rows": whole.rows + rows, "held": whole.held + held, "against": against}),
    )
    text = Page(report(folder).read_text(encoding="utf-8")).text
    assert "Removing 3 layers and healing takes the visual score from 64.4% to 59.8%" in text
    assert "Removing 3 layers alone takes the visual score from 64.4% to 59.8%" in text


def timed(run: Path, **seconds: float) -> str:
    for label, taken in seconds.items():
        path = run / f"eval/{label}.json"
        asked = AskingFacts(items=720, seconds=taken)
        write_document(path, read_document(path, EvalRecord).model_copy(update={"asking": asked}))
    return Page(report(run).read_text(encoding="utf-8")).text


def test_headline_tells_speed_where_both_models_were_timed(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    assert "test items a second (" not in timed(folder, tuned=72.0)
    told = timed(folder, tuned=72.0, pruned=60.0)
    assert ", and answers 12.0 instead of 10.0 test items a second (+20%, measured once)." in told


def test_a_pruned_model_is_not_held_against_the_start_in_place_of_the_tuned_one(
    make_run: MakeRun, tmp_path: Path
) -> None:
    path = make_run(tmp_path / "run") / "eval/retention.json"
    whole = read_document(path, Retention)
    rows = tuple(row for row in whole.rows if row.label == "pruned")
    without = Retention(baseline="start", repetitions=2000, rows=rows, against={"pruned": "tuned"})
    write_document(path, without)
    (path.parent / "tuned.json").unlink()
    (path.parent / "gate.json").unlink()
    page = Page(report(tmp_path / "run").read_text(encoding="utf-8"))
    assert "What removing 3 layers cost is not known: tuned was not evaluated (evaluate.models)" in page.text
    assert "pruned is not compared with tuned, which was not evaluated: add tuned to evaluate.models" in page.text
    assert "Removing 3 layers takes" not in page.text
    # Beside the start it is shown too, folded, as what it is.
    assert "pruned beside start, which is not what pruning cost" in page.text
    # What an earlier version wrote does not say what a model is held against.
    write_document(path, without.model_copy(update={"against": {}}))
    again = Page(report(tmp_path / "run").read_text(encoding="utf-8"))
    assert again.text == page.text


def test_every_cell_of_the_stack_tells_its_score(html: str, run: Path) -> None:
    for entry in read_document(run / "scores.json", Scores).scorers:
        for layer in range(30):
            assert f"layer {layer} · {entry.scorer.replace('-', ' ')}: {entry.values[layer]:.5g}," in html
            for part, values in entry.parts.items():
                assert f"{part} tokens: {values[layer]:.5g}, 4096 tokens" in html


def test_stack_marks_region_and_removed_layers(html: str) -> None:
    stack = html.partition('<section id="layers">')[0]
    assert stack.count('class="layer region"') == 2 * 8
    assert html.count('class="layer removed"') == html.count('class="cross"') == 2 * 3
    assert "layer 9: removed" in html
    assert "layer 29: outside the region, layer 26 after pruning" in html


def test_bars_tell_score_interval_and_count(html: str, run: Path) -> None:
    for label in LABELS:
        for task in read_document(run / f"eval/{label}.json", EvalRecord).tasks:
            if task.metric == "perplexity":
                value, low, high = (f"{math.exp(end):.1f}" for end in (task.score, task.low, task.high))
                interval = f"{low} to {high}"
            else:
                value = f"{100 * task.score:.1f}%"
                interval = f"{100 * task.low:.1f} to {100 * task.high:.1f}"
            assert f"{label}: {value}, 95% interval {interval}, n = {task.n}" in html
    assert "lower is better" in html


def test_retention_table_holds_every_row(page: Page, run: Path) -> None:
    retention = read_document(run / "eval/retention.json", Retention)
    for row in (*retention.rows, *retention.held):
        if row.retention is not None:
            assert f"{row.retention:.1f}% ({row.retention_low:.1f} to {row.retention_high:.1f})" in page.text
    assert "+33.1 points" in page.text
    assert "on the same items, paired, a picture with all of its questions." in page.text


def test_training_shows_components_proof_and_curve(html: str, page: Page) -> None:
    for number in (
        "106\u202f200\u202f000",
        "3\u202f280\u202f000",
        "7\u202f380\u202f000",
        "3.2%",
        "2.41 → 0.587",
        "7 min 12 s",
    ):
        assert number in page.text
    assert "received a gradient" in page.text
    assert "step 120 · loss" in html
    assert "Every decoder layer (30)" in page.text


def test_provenance_holds_command_versions_and_config(page: Page) -> None:
    for text in (
        "striate run my.yaml --set train.lr=1e-4",
        "2.13.0",
        "f00d" * 8,
        "projector_lr: 2.0e-05",
        "Linux x86_64",
    ):
        assert text in page.text


def test_no_width_is_wider_than_a_phone(html: str) -> None:
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style
    always = style[1].split("@media")[0] + style[1].split("@media screen and (max-width: 760px)")[1]
    rules = re.findall(r"(?<![\w-])(?:min-)?width:\s*(\d+)px", always)
    assert all(int(width) <= 350 for width in rules)
    columns = re.findall(r"minmax\((\d+)px", always)
    assert all(int(width) <= 350 for width in columns)
    narrow = re.findall(r'<svg viewBox="0 0 (\d+) \d+" class="narrow"', html)
    assert len(narrow) > 20
    assert set(narrow) == {"350"}


MISSING = {
    "scores.json": "Layers have not been scored",
    "train.json": "Nothing has been trained",
    "train_log.jsonl": "No training log",
    "prune.json": "No layer has been removed",
    "eval/retention.json": "Models have not been compared",
}


@pytest.mark.parametrize("name", MISSING)
def test_says_what_has_not_been_run(name: str, make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / name).unlink()
    page = Page(report(folder).read_text(encoding="utf-8"))
    assert MISSING[name] in page.text


def test_a_run_with_a_region_only_has_a_page(tmp_path: Path) -> None:
    write_document(tmp_path / "region.json", REGION)
    page = Page(report(tmp_path).read_text(encoding="utf-8"))
    assert "This run has chosen a region; models have not been compared yet." in page.text
    assert "No model has answered a question" in page.text
    # Without a config no command would work.
    assert "striate evaluate" not in page.text


def test_tells_no_place_on_the_disk(run: Path, html: str) -> None:
    assert str(run / "packs") in (run / "config.yaml").read_text()
    assert str(run.parent) not in html
    assert "- shapes" in html


def test_prints_no_command_that_would_undo_later_stages(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")

    def steps() -> list[str]:
        return re.findall(r'class="step">([^<]*)<', report(folder).read_text(encoding="utf-8"))

    assert steps() == []
    for name in ("scores.json", "train.json"):
        (folder / name).unlink()
    assert steps() == []
    for name in ("prune.json", *(f"eval/{label}.json" for label in LABELS), "eval/retention.json"):
        (folder / name).unlink()
    assert steps() == ["striate analyze --out run", "striate train --out run"]
    # A folder with another name is not the one that the command made.
    assert re.findall('class="step"', report(folder.rename(tmp_path / "other")).read_text(encoding="utf-8")) == []


def test_headline_tells_perplexity_where_it_is_the_only_text_measure(make_run: MakeRun, tmp_path: Path) -> None:
    path = make_run(tmp_path / "run") / "eval/retention.json"
    whole = read_document(path, Retention)
    kept = [row for row in whole.rows if (row.pack, row.task) != ("*", "text")]
    held = tuple(row for row in whole.held if (row.pack, row.task) != ("*", "text"))
    write_document(path, whole.model_copy(update={"rows": tuple(kept), "held": held}))
    html = report(tmp_path / "run").read_text(encoding="utf-8").replace("\u00a0", " ")
    page = Page(html)
    row = next(row for row in kept if row.metric == "perplexity" and row.label == "tuned")
    told = f"{math.exp(row.baseline_score):.1f} to {math.exp(row.score):.1f}"
    assert f"perplexity of text goes from {told}" in page.text
    assert f"lower is better, 95% interval −3.1% to +4.3%, n = {row.n})" in page.text
    assert "made no measurable difference to the perplexity of text" in page.text
    assert "start: perplexity 26.2<" in html
    assert " nats" not in page.text


def test_headline_compares_with_another_baseline(make_run: MakeRun, tmp_path: Path) -> None:
    path = make_run(tmp_path / "run") / "eval/retention.json"
    whole = read_document(path, Retention)
    rows = [row.model_copy(update={"baseline": "tuned"}) for row in whole.rows if row.label == "pruned"]
    write_document(path, Retention(baseline="tuned", repetitions=2000, rows=tuple(rows)))
    page = Page(report(tmp_path / "run").read_text(encoding="utf-8"))
    assert "Removing 3 layers takes the visual score from 31.2% to 59.8% (+28.6 points against tuned" in page.text
    assert "Tuning 8 of 30" not in page.text


def test_refuses_a_folder_without_artifacts(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no artifact of striate"):
        report(tmp_path)
    with pytest.raises(ArtifactError, match="no run folder at"):
        report(tmp_path / "nowhere")


def test_names_a_damaged_artifact(tmp_path: Path) -> None:
    write_text(tmp_path / "scores.json", '{"version": 1}')
    with pytest.raises(ArtifactError, match=r"scores\.json is not a Scores: num_layers"):
        report(tmp_path)
