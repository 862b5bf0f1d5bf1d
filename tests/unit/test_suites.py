"""Suites by name: what is read, and what is said when a harness or a task is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from striate.artifacts import SuiteRecord
from striate.cli.views.evaluation_tables import suite_lines
from striate.config import anchored, parse_config
from striate.errors import ConfigError, SpecError
from striate.harness import suites as names
from striate.harness.outcome import figures_of
from striate.harness.suites import Suite, check_tasks, parse_suite, require
from striate.pipeline.validate import check_run
from striate.reporting.sections.harnesses import draw_harnesses
from striate.scores.alike import alike_share


def test_suites(tmp_path: Path) -> None:
    assert parse_suite("lm-eval:arc_easy") == Suite("lm-eval", ("arc_easy",))
    assert parse_suite(f"lmms-eval: a, b@{tmp_path}") == Suite("lmms-eval", ("a", "b"), tmp_path)
    assert parse_suite("lm-eval:arc_easy,leaderboard/x y").slug == "lm-eval-arc_easy+leaderboard-x-y"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lm_eval:x", "unknown harness 'lm_eval' in 'lm_eval:x'\n  allowed: lm-eval:TASK,TASK or lmms-eval:TASK,TASK"),
        ("lm_eval:x", "did you mean 'lm-eval'? for example lm-eval:arc_easy"),
        ("lm-eval", "'lm-eval' names no task"),
        ("lm-eval: , ", "names no task\n"),
        ("lmms-eval:x@/nowhere/at/all", "'/nowhere/at/all' is no folder"),
    ],
)
def test_suites_that_can_t_be_read(text: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_suite(text)
    assert said in str(caught.value)


@pytest.mark.parametrize("harness", ["lm-eval", "lmms-eval"])
def test_a_missing_harness_names_its_extra(harness: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "find_spec", lambda module: None)
    with pytest.raises(ConfigError) as caught:
        require(parse_suite(f"{harness}:x,y"))
    assert str(caught.value) == (
        f"suite {harness}:x,y needs the package {harness}, which is not installed\n"
        f"  allowed: striate with its extra '{harness}'\n"
        f"  next:    pip install 'striate[{harness}]', or leave it out of evaluate.suites and --suite"
    )


def test_an_unknown_task_names_the_closest() -> None:
    with pytest.raises(SpecError, match=r"lm-eval has no task 'arc_esy'\n.*\n.*did you mean 'arc_easy'\?"):
        check_tasks(parse_suite("lm-eval:arc_esy"), ["arc_easy", "piqa"])
    check_tasks(parse_suite("lm-eval:piqa"), ["arc_easy", "piqa"])


def test_figures_are_numbers_with_plain_names() -> None:
    results = {"t": {"alias": "t", "acc,none": 0.5, "acc_stderr,none": "N/A", "em,strict": 1, "sample_len": 9}}
    assert figures_of(results) == {"t": {"acc": 0.5, "em,strict": 1.0}}


def config(folder: Path, **evaluate: Any) -> Any:
    pack = folder / "pack"
    pack.mkdir(parents=True)
    sample = [{"id": "1", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}]
    (pack / "train.json").write_text(json.dumps(sample))
    raw = {"model": {"path": "builtin"}, "data": {"train": [str(pack)]}, "evaluate": evaluate}
    return parse_config(raw, ["train.projector=frozen", "analyze.scorers=[block-influence]"])


def test_check_says_which_harness_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "find_spec", lambda module: object())
    monkeypatch.setattr(names, "version", lambda name: "0.4.13")
    assert "suite     lm-eval:piqa: lm-eval 0.4.13" in list(check_run(config(tmp_path, suites=["lm-eval:piqa"])))
    with pytest.raises(SpecError, match="unknown harness"):
        list(check_run(config(tmp_path / "other", suites=["x:y"])))


def test_check_reads_a_benchmark(tmp_path: Path) -> None:
    mmlu = tmp_path / "mmlu"
    (mmlu / "test").mkdir(parents=True)
    (mmlu / "test" / "anatomy_test.csv").write_text("q,1,2,3,4,A\n")
    found = list(check_run(config(tmp_path, packs=[f"mmlu@0:{mmlu}"])))
    assert f"pack      mmlu@0:{mmlu}: 1 items of 1 task" in found
    with pytest.raises(SpecError, match="unknown benchmark 'mmlo'"):
        list(check_run(config(tmp_path / "other", packs=[f"mmlo:{mmlu}"])))


def test_paths_after_names_are_anchored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mmlu").mkdir()
    monkeypatch.chdir(tmp_path)
    section = anchored(config(tmp_path, packs=["mmlu@0:mmlu", "mmlu"], suites=["lm-eval:x@mmlu", "lm-eval:x"])).evaluate
    assert section.packs == (f"mmlu@0:{tmp_path}/mmlu", f"{tmp_path}/mmlu")
    assert section.suites == (f"lm-eval:x@{tmp_path}/mmlu", "lm-eval:x")


def test_where_all_items_are_alike_a_harness_tells_no_error_of_nothing() -> None:
    figures = {"acc": 1.0, "acc_stderr": 0.0, "em,strict": 0.5, "em_stderr,strict": 0.08, "f1": 0.3}
    record = SuiteRecord(
        label="tuned", model="m", harness="lm-eval", harness_version="1", packages={}, tasks=("arc",),
        samples={"arc": 40}, figures={"arc": figures, "group": {"acc": 0.0, "acc_stderr": 0.0}}, seconds=1,
    )  # fmt: skip
    alike = "all 40 alike: 95% interval of their share 91.2 to 100%"
    assert suite_lines(record) == [
        f"tuned  lm-eval arc: acc 1 ± ? ({alike}), em,strict 0.5 ± 0.08, f1 0.3 (n = 40)",
        "tuned  lm-eval group: acc 0",
    ]
    page = str(draw_harnesses([record]))
    assert "none: all 40 alike, 95% interval of their share 91.2 to 100%" in page
    assert alike_share(40) == pytest.approx(0.025 ** (1 / 40))
