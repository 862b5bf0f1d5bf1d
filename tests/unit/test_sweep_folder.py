"""What is in a sweep's folder of earlier runs: other settings are told before anything runs, and nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from striate.config import dump_config
from striate.errors import ArtifactError
from striate.pipeline.sweeps.earlier_runs import check_unchanged, runs_beside
from striate.pipeline.sweeps.plan import Plan
from striate.runs.folder import CONFIG_FILE, RUN_FILE
from striate.runs.former_defaults import FORMER
from striate.runs.run_record import RunRecord, StageRecord

BASE = {"model": {"path": "m"}, "data": {"train": ["d"]}}
DONE = StageRecord(
    status="done", seconds=1.0, key="k", outputs={}, peak_memory_gib=0, finished="2026-01-01T00:00:00+00:00"
)


def plan_of(folder: Path, **settings: Any) -> Plan:
    (folder / "run.yaml").write_text(yaml.safe_dump(BASE), encoding="utf-8")
    (folder / "sweep.yaml").write_text(
        yaml.safe_dump({"base": "run.yaml", "set": settings, "grid": {"seed": [0, 1]}}), encoding="utf-8"
    )
    return Plan(folder / "sweep.yaml")


def begun(folder: Path, plan: Plan, **stages: StageRecord) -> Path:
    """Write a run folder for every run of the plan, as far as `stages`."""
    for run in plan.runs:
        own = folder / "runs" / run.name
        own.mkdir(parents=True)
        record = RunRecord.of_this_machine(run.config.seed, "cpu", "striate run", stages, {})
        (own / RUN_FILE).write_text(record.model_dump_json(), encoding="utf-8")
        (own / CONFIG_FILE).write_text(dump_config(run.config), encoding="utf-8")
    return folder / "runs"


def test_other_settings_are_told_before_anything_runs(tmp_path: Path) -> None:
    runs = begun(tmp_path, plan_of(tmp_path), train=DONE)
    check_unchanged(runs, plan_of(tmp_path).runs)
    check_unchanged(runs, plan_of(tmp_path, **{"machine.micro_batch": 2}).runs)
    with pytest.raises(ArtifactError) as error:
        check_unchanged(runs, plan_of(tmp_path, **{"train.epochs": 7}).runs)
    assert error.value.given == f"2 of 2 runs in {runs} were made with other settings; seed=0: train.epochs: 1.0 -> 7.0"
    assert error.value.next_step.startswith("choose another --out, or use --overwrite")


def test_runs_that_began_with_former_defaults_go_on_with_them(tmp_path: Path) -> None:
    former = {f"{section}.{key}": value for section, values in FORMER.items() for key, value in values.items()}
    runs = begun(tmp_path, plan_of(tmp_path, **former), train=DONE)
    check_unchanged(runs, plan_of(tmp_path).runs)
    with pytest.raises(ArtifactError, match=r"seed=0: prune\.scorer: modality-block-influence -> answer-loss"):
        check_unchanged(runs, plan_of(tmp_path, **{"prune.scorer": "answer-loss"}).runs)


def test_configs_of_before_a_setting_came_are_of_its_former_default(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    runs = begun(tmp_path, plan, train=DONE)
    for run in plan.runs:
        kept = run.config.model_dump(mode="json")
        del kept["prune"]["compensate"], kept["heal"]["lr"]
        (runs / run.name / CONFIG_FILE).write_text(yaml.safe_dump(kept), encoding="utf-8")
    check_unchanged(runs, plan_of(tmp_path).runs)
    with pytest.raises(ArtifactError, match=r"prune\.compensate: none -> auto"):
        check_unchanged(runs, plan_of(tmp_path, **{"prune.compensate": "auto"}).runs)


def test_runs_of_which_nothing_is_done_may_change(tmp_path: Path) -> None:
    runs = begun(tmp_path, plan_of(tmp_path))
    check_unchanged(runs, plan_of(tmp_path, **{"train.epochs": 7}).runs)


def test_a_damaged_run_is_left_to_itself(tmp_path: Path) -> None:
    runs = begun(tmp_path, plan_of(tmp_path), train=DONE)
    (runs / "seed=0" / RUN_FILE).write_text("{", encoding="utf-8")
    (runs / "seed=1" / CONFIG_FILE).unlink()
    check_unchanged(runs, plan_of(tmp_path, **{"train.epochs": 7}).runs)


def test_runs_that_are_asked_for_no_more_are_named(tmp_path: Path) -> None:
    assert runs_beside(tmp_path / "runs", []) == []
    runs = begun(tmp_path, plan_of(tmp_path))
    (runs / "notes").mkdir()
    assert runs_beside(runs, ["seed=1"]) == ["seed=0"]
