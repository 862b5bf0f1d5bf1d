"""`striate evaluate` and its flags on a tiny run: other checkpoints, the gate, baselines and answers side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from striate.cli import app

NO_TUNING = ["--set", "evaluate.models=[start]", "--set", "evaluate.limit=12"]


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


@pytest.fixture
def other(llava_builder: Any, tmp_path: Path) -> Path:
    """Another model of the same shape, whose answers differ."""
    loaded = llava_builder(seed=3)
    loaded.model.save_pretrained(tmp_path / "other")
    loaded.processor.save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def test_other_checkpoints_a_gate_and_where_answers_differ(run_yaml: Path, other: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    others = f"evaluate.others={{second: {other}, same: {yaml_model(run_yaml)}}}"
    shown = call("evaluate", run_yaml, "--out", out, *NO_TUNING, "--set", others)
    assert shown.exit_code == 0, shown.output
    assert "score and 95% interval; below, % kept of start" in shown.stdout
    assert "visual, mean of tasks" in shown.stdout
    retention = json.loads((out / "eval" / "retention.json").read_text())
    assert {row["label"] for row in retention["rows"]} == {"second", "same"}
    assert "over pictures (items without one singly)" in retention["interval"]
    assert not list((out / "eval").glob("*.replies.jsonl"))
    assert json.loads((out / "eval" / "second.json").read_text())["asking"]["items"] == 12
    assert not (out / "eval" / "gate.json").exists()

    def kept() -> str:
        return (out / "config.yaml").read_text()

    before = kept()
    # The run folder keeps its config: only what is new runs, and the gate is said of every model.
    gated = call("evaluate", "--out", out, "--gate", "pack/colour>=0.1:same,visual>=1000:second")
    assert gated.exit_code == 1, gated.output
    assert "evaluate:second: up to date" in gated.stdout
    assert "passed  sure" in gated.stdout
    assert "gate: second keeps" in gated.stderr
    assert "of start in visual, 1000% is asked" in gated.stderr
    assert not json.loads((out / "eval" / "gate.json").read_text())["rows"][1]["passed"]

    # A flag counts for its call: the folder keeps none of them.
    assert kept() == before
    listed = call("evaluate", "--out", out, "--differences")
    assert listed.exit_code == 0, listed.output
    assert "12 items are answered otherwise by some model" in listed.stdout
    assert not (out / "eval" / "gate.json").exists()
    told = json.loads(call("evaluate", "--out", out, "--differences", "--json").stdout)["differences"]
    assert len(told) == 12
    assert told[0]["start"]["answer"] != told[0]["second"]["answer"]
    table = call("evaluate", "--out", out, "--export", tmp_path / "answers.csv")
    assert table.exit_code == 0, table.output
    assert "second answer" in (tmp_path / "answers.csv").read_text().splitlines()[0]

    # Models that others are held against are asked without their pictures, where there are any, and once.
    floors = call("evaluate", "--out", out, "--set", "evaluate.floor=true", "--gate", "visual_above_floor>=1:second")
    assert "visual above the floor: " in floors.stdout
    assert floors.exit_code == 1
    assert "of start in visual above the floor, 1% is asked" in floors.stderr
    answered = [json.loads(line) for line in (out / "eval" / "floor" / "start.predictions.jsonl").open()]
    seen = [json.loads(line) for line in (out / "eval" / "start.predictions.jsonl").open()]
    assert [(row["id"], row["picture"]) for row in answered] == [
        (row["id"], row["picture"]) for row in seen if row["image"]
    ]
    assert any(one["answer"] != two["answer"] for one, two in zip(answered, seen, strict=False))
    assert [path.name for path in (out / "eval" / "floor").iterdir() if "second" in path.name] == []
    off = call("evaluate", "--out", out, "--set", "evaluate.floor=false")
    assert "above the floor" not in off.stdout
    again = call("evaluate", "--out", out, "--set", "evaluate.floor=true")
    assert "floor:start: up to date" in again.stdout
    assert call("evaluate", "--out", out, "--set", "evaluate.floor=false").exit_code == 0

    turned = call("evaluate", "--out", out, "--baseline", "second")
    assert turned.exit_code == 0, turned.output
    assert json.loads((out / "eval" / "retention.json").read_text())["baseline"] == "second"
    lacking = call("evaluate", "--out", out, "--suite", "lmms-eval:mine", "--gate", "visual>=1000")
    assert lacking.exit_code == 1
    assert kept() == before
    again = call("evaluate", "--out", out)
    assert again.exit_code == 0, again.output
    assert json.loads((out / "eval" / "retention.json").read_text())["baseline"] == "start"

    # A config may keep what flags say for one call; so did runs of earlier versions.
    stored = call("evaluate", "--out", out, "--set", "evaluate.gate=visual>=1000:second")
    assert stored.exit_code == 1
    assert "visual>=1000:second" in kept()
    assert call("evaluate", "--out", out).exit_code == 1
    assert call("evaluate", "--out", out, "--set", "evaluate.gate=").exit_code == 0


def yaml_model(run_yaml: Path) -> str:
    import yaml

    return str(yaml.safe_load(run_yaml.read_text())["model"]["path"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--gate", "visual>99"], "gate 'visual>99': 'visual>99' is no condition"),
        (["--export", "answers.xls"], "answers.xls is no table that is written"),
        (["--baseline", "nobody"], "evaluate.baseline 'nobody' is not among evaluate.models and evaluate.others"),
        (["--set", "evaluate.others={tuned: x}"], "evaluate.others: 'tuned' is no name for a model"),
        (["--set", "evaluate.others={a/b: x}"], "evaluate.others: 'a/b' is no name for a model"),
        (["--set", "evaluate.packs=[]", "--gate", "text>=9"], "evaluate.gate is set, but evaluate.packs is empty"),
        (["--gate", "visaul>=9"], "gate 'visaul>=9': nothing called 'visaul' is measured"),
        (["--set", "evaluate.gate=pack>=9:nobody"], "gate 'pack>=9:nobody': no model is called 'nobody'"),
    ],
)
def test_what_can_not_be_is_said_before_anything_runs(
    run_yaml: Path, tmp_path: Path, arguments: list[str], text: str
) -> None:
    shown = call("evaluate", run_yaml, "--out", tmp_path / "run", *arguments)
    assert shown.exit_code == 1
    assert text in shown.stderr
    assert not (tmp_path / "run").exists()


def test_a_gate_without_scored_tasks_leaves_the_run_as_it_was(run_yaml: Path, tmp_path: Path) -> None:
    out, pack = tmp_path / "run", tmp_path / "prose"
    pack.mkdir()
    row = {"id": "a", "text": "ice is cold", "metric": "perplexity", "task": "prose"}
    (pack / "test.jsonl").write_text(json.dumps(row) + "\n")
    assert call("select", run_yaml, "--out", out, "--set", "select.region=uniform:2").exit_code == 0
    before = (out / "config.yaml").read_text()
    packs = f"evaluate.packs=[{pack}]"
    shown = call("evaluate", run_yaml, "--out", out, "--set", packs, "--gate", "text>=99")
    assert shown.exit_code == 1
    assert shown.stderr == (
        "error: gate 'text>=99': no text task is scored by a share of right answers\n"
        "  allowed: a scope with such tasks; perplexity has rows of its own, as PACK/TASK\n"
        "  next:    name one of prose/prose\n"
    )
    assert (out / "config.yaml").read_text() == before
    checked = call("check", run_yaml, "--set", packs, "--set", "evaluate.gate=text>=99")
    assert checked.exit_code == 1
    assert "no text task is scored by a share of right answers" in checked.stderr
    fine = call("check", run_yaml, "--set", "evaluate.gate=visual>=99")
    assert "gate      visual>=99" in fine.stdout


def test_a_suite_or_baseline_that_can_not_be_is_refused_before_anything_is_asked(
    run_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("striate.harness.suites.find_spec", lambda package: None)
    out = tmp_path / "run"
    suite = call("evaluate", run_yaml, "--out", out, "--suite", "arc_easy")
    assert (suite.exit_code, suite.stdout) == (1, "")
    assert suite.stderr.startswith("error: unknown harness 'arc_easy'")
    baseline = call("evaluate", run_yaml, "--out", out, "--baseline", "strat")
    assert not out.exists()
    assert "'strat' is not among evaluate.models and evaluate.others: start, tuned" in baseline.stderr
    assert baseline.stderr.endswith("fix --baseline\n")
    lacking = call("evaluate", run_yaml, "--out", out, "--set", "evaluate.models=[start]", "--suite", "lmms-eval:mine")
    assert lacking.exit_code == 1
    assert "needs the package lmms-eval, which is not installed" in lacking.stderr
    assert not (out / "eval").exists()


def test_run_refuses_a_gate_of_nothing_before_it_trains_and_fails_by_one_after_its_report(
    run_yaml: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shown = call("run", run_yaml, "--out", out, "--set", "evaluate.gate=visaul>=9")
    assert shown.exit_code == 1
    assert "nothing called 'visaul' is measured" in shown.stderr
    assert "did you mean 'visual'?" in shown.stderr
    assert not out.exists()
    settings = ["--set", "evaluate.gate=pack/colour>=500", "--set", "train.max_steps=1", "--set", "prune.remove=0"]
    failed = call("run", run_yaml, "--out", out, *settings)
    assert failed.exit_code == 1
    assert "gate: tuned keeps" in failed.stderr
    assert (out / "report.html").is_file()
