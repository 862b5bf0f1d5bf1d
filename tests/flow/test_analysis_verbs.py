"""`analyze` and `select` on the command line: views, export, comparison, regions side by side."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from striate.artifacts import Scores, read_document, write_document
from striate.cli import app


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: object) -> str:
    shown = call(*arguments)
    assert shown.exit_code == 0, shown.output
    return shown.stdout


def refused(*arguments: object) -> str:
    shown = call(*arguments)
    assert shown.exit_code == 1, shown.output
    return re.sub(r"\s+", " ", shown.stderr)


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory, _saved_llava: Path, saved_pack: Path) -> tuple[Path, str]:
    """A run folder with scores by task and a region, and what `analyze` printed."""
    folder = tmp_path_factory.mktemp("analysed")
    raw = {
        "model": {"path": str(_saved_llava)},
        "data": {"train": [str(saved_pack)]},
        "analyze": {"samples": 8, "scorers": ["block-influence", "modality-block-influence", "angular-distance"]},
        "select": {"region": "interlace:25%"},
        "machine": {"micro_batch": 4, "device": "cpu"},
        "train": {"max_length": 128},
    }
    (folder / "RUN.yaml").write_text(yaml.safe_dump(raw))
    said = done(
        "--verbose",
        "analyze",
        folder / "RUN.yaml",
        "--out",
        folder / "run",
        "--by",
        "task",
        "--export",
        folder / "s.csv",
    )
    done("select", "--out", folder / "run")
    return folder / "run", said


def test_analyze_shows_and_exports(analysed: tuple[Path, str]) -> None:
    out, said = analysed
    scores = read_document(out / "scores.json", Scores)
    assert scores.tasks
    assert "by task" in said
    assert "agreement between scorers" in said
    assert "how sure" in said
    with (out.parent / "s.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["task"] for row in rows} == {"all", *scores.tasks}
    found = {(row["scorer"], row["task"], row["part"], int(row["layer"])): float(row["value"]) for row in rows}
    assert found["block-influence", "all", "all", 2] == scores.of("block-influence").values[2]
    assert (
        found["modality-block-influence", "all", "image", 3] == scores.of("modality-block-influence").parts["image"][3]
    )
    assert f"scores in {out.parent / 's.csv'}" in said.replace("\n", "")


def test_analyze_again_marks_the_region(analysed: tuple[Path, str]) -> None:
    out, _ = analysed
    said = done("--verbose", "analyze", "--out", out)
    assert "analyze: up to date" in said
    region = json.loads((out / "region.json").read_text())
    marks = re.findall(r"^ +([0-3])  ([█░])  ", said, re.MULTILINE)[:4]
    assert [int(layer) for layer, mark in marks if mark == "█"] == region["layers"]


def test_an_export_is_refused_before_any_work(analysed: tuple[Path, str]) -> None:
    out, _ = analysed
    run = out.parent / "RUN.yaml"
    text = refused("analyze", run, "--out", out.parent / "new", "--export", out.parent / "scores.xlsx")
    assert "unknown suffix '.xlsx' allowed: a file that ends in .csv or .json" in text
    assert "exists already" in refused("analyze", run, "--out", out.parent / "new", "--export", out.parent / "s.csv")
    assert not (out.parent / "new").exists()
    done("analyze", "--out", out, "--export", out.parent / "scores.json")
    assert json.loads((out.parent / "scores.json").read_text())["num_layers"] == 4


def test_two_runs_compared(analysed: tuple[Path, str]) -> None:
    out, _ = analysed
    scores = read_document(out / "scores.json", Scores)
    turned = [
        entry.model_copy(update={"values": entry.values[::-1]}) if entry.scorer == "block-influence" else entry
        for entry in scores.scorers
    ]
    other = out.parent / "other.json"
    write_document(other, scores.model_copy(update={"scorers": tuple(turned)}))
    said = done("analyze", "--compare", out, other)
    assert re.search(r"modality-block-influence +1\.00", said)
    assert "block-influence: layers that moved most" in said
    assert "up to date" not in said
    told = json.loads(done("analyze", "--compare", out, other, "--json"))["compared"]
    assert [row["scorer"] for row in told[0]["scorers"]] == [entry.scorer for entry in scores.scorers]
    task = next(iter(scores.tasks))
    assert f"task {task}" in done("analyze", "--compare", out, other, "--by", "task").replace("\n", "")


def test_what_can_not_be_compared(analysed: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = analysed
    assert "has no scores allowed: --compare RUN1 RUN2" in refused("analyze", "--compare", out, tmp_path)
    assert "no run folder at" in refused("analyze", "--compare", out, tmp_path / "nosuch")
    scores = read_document(out / "scores.json", Scores)
    write_document(tmp_path / "deep.json", scores.model_copy(update={"num_layers": 40}))
    text = refused("analyze", "--compare", out, tmp_path / "deep.json")
    assert "the first run scored 4 layers, and the second 40 allowed: two runs on models with as many layers" in text
    text = refused("analyze", "--compare", out, out, "--export", tmp_path / "s.csv", "--overwrite")
    assert "--export and --overwrite has no effect" in text


def test_regions_side_by_side(analysed: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = analysed
    before = (out / "region.json").read_bytes()
    said = done("select", "--out", out, "--beside", "top:2", "--beside", "scores:block-influence@colour:25%")
    lines = [line for line in said.splitlines() if "of 4 layers" in line]
    region = json.loads(before)
    assert len(region["layers"]) == len(region["removable"]) == 1
    stack = "".join("█" if i in region["layers"] else "×" if i in region["removable"] else "░" for i in range(4))
    assert lines[0].split("  ")[0] == "interlace:25%"
    assert f"{stack}  1 of 4 layers" in lines[0]
    common = len({2, 3} & set(region["layers"]))
    assert re.search(rf"top:2 +░░██  2 of 4 layers, {common} of them in the chosen region", lines[1])
    assert len(lines) == 3
    assert (out / "region.json").read_bytes() == before
    assert "unknown selector 'topp'" in refused("select", "--out", out, "--beside", "topp:2")
    shown = refused(
        "select",
        out / "config.yaml",
        "--out",
        tmp_path / "none",
        "--beside",
        "scores:fisher:2",
        "--set",
        "select.region=all",
    )
    assert "run `striate analyze` with the scorer 'fisher' first" in shown
