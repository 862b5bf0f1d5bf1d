"""Benchmarks in their published files asked of a model, and suites as stages of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from published_kit import mmbench, mme, mmmu, pope, textvqa
from typer.testing import CliRunner

from striate.artifacts import SuiteRecord
from striate.cli import app
from striate.cli.views.evaluation_tables import suite_lines
from striate.config import EvaluateSection, MachineSection, RunConfig, dump_config, parse_config
from striate.harness import running
from striate.harness import suites as names
from striate.harness.outcome import Outcome
from striate.harness.suites import Harness
from striate.models.io.load import Loaded
from striate.pipeline import Flow
from striate.stages.evaluate import evaluate
from striate.tasks.packs.items import Pack
from striate.tasks.packs.sources import parse_source, read_source


def packs(folder: Path, *builders: Any) -> list[Pack]:
    found = []
    for build in builders:
        place = folder / build.__name__
        place.mkdir()
        build(place)
        found.append(read_source(parse_source(f"{build.__name__}:{place}"), pictures=folder / "unpacked"))
    return found


def test_a_model_answers_published_benchmarks(tiny_llava: Loaded, tmp_path: Path) -> None:
    record, predictions = evaluate(
        tiny_llava.model,
        tiny_llava.processor,
        packs(tmp_path, pope, mme, mmbench, textvqa),
        label="start",
        model_name="tiny",
        config=EvaluateSection(max_new_tokens=4, bootstrap=100),
        machine=MachineSection(device="cpu"),
    )
    tasks = {(task.pack, task.task): task for task in record.tasks}
    assert set(tasks) == {
        *(("pope", name) for name in ("random", "popular", "adversarial")),
        ("mme", "perception"),
        ("mme", "cognition"),
        ("mmbench", "mmbench"),
        ("textvqa", "textvqa"),
    }
    assert {task.kind for task in record.tasks} == {"visual"}
    assert set(tasks["pope", "random"].details) == {"accuracy", "precision", "recall", "f1", "yes_rate"}
    assert tasks["pope", "random"].details["accuracy"] == tasks["pope", "random"].score
    assert {"accuracy_plus", "mme_score", "count", "posters"} <= set(tasks["mme", "perception"].details)
    assert all(task.unparsed <= task.n for task in record.tasks)
    expected = {row.id: row.expected for row in predictions if row.pack == "mmbench"}
    assert expected == {"241": ("left",), "1000241": ("blue",)}


def test_several_pictures_in_one_question(tiny_llava: Loaded, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    record, predictions = evaluate(
        tiny_llava.model,
        tiny_llava.processor,
        packs(tmp_path, mmmu),
        label="start",
        model_name="tiny",
        config=EvaluateSection(max_new_tokens=4, bootstrap=100),
        machine=MachineSection(device="cpu"),
    )
    assert [(task.metric, task.n) for task in record.tasks] == [("letter", 1), ("normalised", 1)]
    assert len(predictions) == 2


@pytest.fixture
def run_config(tiny_llava_dir: Path, pack_dir: Path) -> RunConfig:
    return parse_config(
        {
            "model": {"path": str(tiny_llava_dir)},
            "data": {"train": [str(pack_dir)]},
            "evaluate": {"suites": ["lm-eval:piqa", "lm-eval:arc,boolq"], "models": ["start"], "limit": 3},
            "machine": {"device": "cpu"},
        }
    )


def test_a_run_keeps_the_pictures_that_it_unpacks(run_config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    mmbench(tmp_path / "bench")
    section = run_config.evaluate.model_copy(update={"packs": (f"mmbench:{tmp_path}/bench",), "max_new_tokens": 2})
    config = run_config.model_copy(update={"evaluate": section})
    first = Flow(config, tmp_path / "run").evaluate()
    assert (tmp_path / "run" / "eval" / "pictures" / "mmbench" / "241.jpg").is_file()
    written = (tmp_path / "run" / "eval" / "start.json").read_bytes()
    assert Flow(config, tmp_path / "run").evaluate() == first
    assert (tmp_path / "run" / "eval" / "start.json").read_bytes() == written


def fake_harness(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Put a harness in place that finds every answer right; return the list of what it is asked."""
    asked: list[Any] = []

    def run(suite: Any, loaded: Loaded, *, limit: int | None, batch_size: int | None) -> Outcome:
        asked.append((suite.tasks, limit, loaded.model.training))
        rows = [{"doc_id": 0, "target": "a", "resps": [["a"]], "acc": 1.0, "doc": {"long": "text"}}]
        return Outcome({task: {"acc": 1.0} for task in suite.tasks}, {}, dict.fromkeys(suite.tasks, rows))

    module = type("Module", (), {"run": staticmethod(run)})
    monkeypatch.setattr(running, "import_module", lambda name: module)
    monkeypatch.setattr(names, "HARNESSES", {"lm-eval": Harness("lm-eval", "json", "")})
    monkeypatch.setattr(names, "version", lambda name: "1.2.3")
    return asked


def test_suites_are_stages_that_are_done_once(
    run_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fake_harness(monkeypatch)
    first = Flow(run_config, tmp_path / "run").suites()
    assert asked == [(("piqa",), 3, False), (("arc", "boolq"), 3, False)]
    assert [(row.label, row.tasks, row.harness_version) for row in first] == [
        ("start", ("piqa",), "1.2.3"),
        ("start", ("arc", "boolq"), "1.2.3"),
    ]
    folder = tmp_path / "run" / "eval" / "suites"
    lines = (folder / "start.lm-eval-arc+boolq.samples.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"task": task, "doc_id": 0, "target": "a", "resps": [["a"]], "acc": 1.0} for task in ("arc", "boolq")
    ]
    assert Flow(run_config, tmp_path / "run").suites() == first
    assert len(asked) == 2
    assert all(isinstance(row, SuiteRecord) for row in first)


def test_the_verb_runs_suites_alone(run_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_harness(monkeypatch)
    (tmp_path / "run.yaml").write_text(dump_config(run_config))
    words = ["evaluate", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run"), "--suite", "lm-eval:piqa"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "start  lm-eval piqa: acc 1 (n = 1)" in result.output
    assert "boolq" not in result.output
    assert CliRunner().invoke(app, [*words[:-1], "lm_eval:piqa"]).exit_code != 0


def test_ls_shows_metrics_benchmarks_and_harnesses() -> None:
    shown = CliRunner().invoke(app, ["ls", "tasks"]).output
    assert all(name in shown for name in ("relaxed", "mmbench:FOLDER", "lm-eval:TASKS"))


def test_a_suite_in_lines() -> None:
    record = SuiteRecord(
        label="tuned",
        model="m",
        harness="lm-eval",
        harness_version="1",
        packages={},
        tasks=("arc", "bbh"),
        samples={"arc": 300},
        figures={
            "arc": {"acc": 0.51, "acc_stderr": 0.0289, "em,strict": 0.25, "em_stderr,strict": 0.1},
            "bbh": {"em": 1},
        },
        seconds=1,
    )
    assert suite_lines(record) == [
        "tuned  lm-eval arc: acc 0.51 ± 0.029, em,strict 0.25 ± 0.1 (n = 300)",
        "tuned  lm-eval bbh: em 1",
    ]
