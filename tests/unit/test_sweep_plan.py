"""The runs that a sweep's file asks for, their names, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from striate.config import load_config
from striate.config.sweep_settings import override
from striate.errors import ConfigError
from striate.pipeline.sweeps.choosing import at_an_end, classes_of, ranked, survivors
from striate.pipeline.sweeps.plan import Plan, Planned

BASE = {"model": {"path": "m"}, "data": {"train": ["d"], "validate": "5%"}, "train": {"max_steps": 40}}


def planned(folder: Path, **sweep: Any) -> Plan:
    (folder / "run.yaml").write_text(yaml.safe_dump(BASE), encoding="utf-8")
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({"base": "run.yaml", **sweep}), encoding="utf-8")
    return Plan(file)


def test_a_grid_is_combined_and_each_run_has_its_whole_config(tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        set={"train.epochs": 2},
        grid={"select.region": ["uniform:25%", "all"], "train.lr": [1e-4, 1e-3]},
        runs=[{"set": {"train.lora.r": 8}, "name": "thin"}, {"set": {"seed": 3}}],
    )
    assert [run.name for run in plan.runs] == [
        "region=uniform-25%,lr=0.0001",
        "region=uniform-25%,lr=0.001",
        "region=all,lr=0.0001",
        "region=all,lr=0.001",
        "thin",
        "seed=3",
    ]
    first, thin = plan.runs[0].config, plan.runs[4].config
    assert (first.select.region, first.train.lr, first.train.epochs) == ("uniform:25%", 1e-4, 2)
    assert (thin.train.lora.r, thin.train.epochs, thin.select.region) == (8, 2, "uniform:25%")
    assert plan.varied == ("select.region", "train.lr", "train.lora.r", "seed")
    assert plan.runs[5].group == {}


def test_folders_with_settings_alone_are_runs(tmp_path: Path) -> None:
    for name, text in (("b one", "train.lr: 0.5\n"), ("a", "select.region: all\n")):
        (tmp_path / "rows" / name).mkdir(parents=True)
        (tmp_path / "rows" / name / "settings.yaml").write_text(text, encoding="utf-8")
    runs = planned(tmp_path, folders="rows").runs
    assert [(run.name, run.settings) for run in runs] == [
        ("a", {"select.region": "all"}),
        ("b-one", {"train.lr": 0.5}),
    ]


def test_each_row_is_tried_with_the_values_of_each(tmp_path: Path) -> None:
    (tmp_path / "rows" / "rival").mkdir(parents=True)
    (tmp_path / "rows" / "rival" / "settings.yaml").write_text("{select.region: all, train.lora.r: 8}\n")
    plan = planned(
        tmp_path,
        grid={"select.region": ["none"]},
        runs=[{"name": "whole", "set": {"select.region": "all"}}, {"name": "known", "set": {"train.lr": 0.5}}],
        folders="rows",
        each={"train.lr": [0.1, 0.2]},
        choose={"seeds": [0, 1]},
    )
    whole, rival = {"select.region": "all"}, {"select.region": "all", "train.lora.r": 8}
    assert {run.name: run.settings for run in plan.runs} == {
        "region=none": {"select.region": "none"},
        "whole,lr=0.1": {**whole, "train.lr": 0.1},
        "whole,lr=0.2": {**whole, "train.lr": 0.2},
        "known": {"train.lr": 0.5},
        "rival,lr=0.1": {**rival, "train.lr": 0.1},
        "rival,lr=0.2": {**rival, "train.lr": 0.2},
    }
    assert [len(same) for same in classes_of(plan.runs, ["train.lr"])] == [1, 2, 1, 2]
    assert (plan.runs[4].config.train.lora.r, plan.runs[4].config.train.lr) == (8, 0.1)
    # Seeds of the best keep the row's name, and those of the grid are called by all their settings.
    again = [plan.with_settings(plan.runs[index], {"seed": 1}) for index in (0, 4)]
    assert [run.name for run in again] == ["region=none,seed=1", "rival,lr=0.1,seed=1"]
    assert plan.with_settings(again[1], {"seed": 2}).settings == {**rival, "train.lr": 0.1, "seed": 2}


@pytest.mark.parametrize("value", [1e-3, 3, True, None, "uniform:25%", [1, "a: b"], {"a": 1}, "x" * 200, "no", "ä"])
def test_an_override_is_read_back_as_it_was(value: Any) -> None:
    name, _, written = override("a.b", value).partition("=")
    assert (name, yaml.safe_load(written)) == ("a.b", value)


@pytest.mark.parametrize(
    ("sweep", "told"),
    [
        ({}, "nothing varies: give grid, runs or folders"),
        ({"grid": {"train.lr": []}}, "grid: train.lr has no values"),
        ({"grid": {"train.lrr": [1]}}, "run lrr=1: "),
        ({"grid": {"train.lr": [-1]}}, "run lr=-1: "),
        ({"gird": {}}, "gird: unknown key"),
        ({"runs": [{"set": {}, "name": "../x"}]}, "runs.0.name: String should match pattern"),
        ({"runs": [{"set": {"seed": 1}}, {"set": {"seed": 1}}]}, "two runs called seed=1"),
        ({"folders": "none"}, "none has no folder with settings.yaml"),
        ({"grid": {"seed": [1]}, "choose": {}}, "choose.over: train.lr varies in no run\n  allowed: what varies: seed"),
        ({"grid": {"seed": [1]}, "each": {"train.lr": [1]}}, "each is of runs and folders, and there are none"),
        ({"runs": [{"set": {"seed": 1}}], "each": {"train.lr": []}}, "each: train.lr has no values"),
        ({"runs": [{"set": {"seed": 1}}], "each": {"train.lr": 0.1}}, "each.train.lr: give a list, such as [0.1]"),
        ({"runs": [{"set": {}}], "each": {"seed": [1]}, "choose": {"seeds": [2]}}, "choose.seeds and each.seed"),
        ({"runs": [{"name": "thin", "set": {}}], "each": {"train.lr": [0.1, -1]}}, "run thin,lr=-1: "),
        ({"grid": {"train.lr": [1], "seed": [1]}, "choose": {"seeds": [2]}}, "choose.seeds and grid.seed are both set"),
        ({"grid": {"train.lr": [1]}, "choose": {"rungs": ["50%", "20%"]}}, "rungs [0.5, 0.2]: shares of the training"),
        ({"grid": {"train.lr": [1]}, "set": {"data.validate": None}, "choose": {}}, "lr=1 holds nothing out"),
        ({"grid": {"train.lr": 0.1}}, "grid.train.lr: give a list, such as [0.1]"),
        ({"grid": {"select.region": ["all", "middel:2"]}}, "run region=middel-2: region 'middel:2': "),
        (
            {"grid": {"seed": [0, 1]}, "runs": [{"name": "first", "set": {"seed": 0}}]},
            "same run twice: seed=0 and first",
        ),
        ({"grid": {"seed": [1]}, "compare": {"train.lr": 0.1}}, "compares with train.lr: 0.1, which no run has"),
        ({"grid": {"train.lr": [0.2]}, "compare": {"train.lr": 0.1}}, "allowed: train.lr: 0.2"),
        ({"grid": {"seed": list(range(101)), "train.lr": [0.1] * 100}}, "asks for 10100 runs"),
    ],
)
def test_what_can_not_run_is_refused_by_its_name(sweep: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        planned(tmp_path, **sweep)
    assert told in str(error.value)
    assert error.value.allowed
    assert error.value.next_step


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("{base: nowhere.yaml, grid: {seed: [1]}}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        Plan(tmp_path / "sweep.yaml")


def test_a_sweep_and_a_runs_config_are_told_apart(tmp_path: Path) -> None:
    planned(tmp_path, grid={"train.lr": [1e-4]})
    sweep, run = tmp_path / "sweep.yaml", tmp_path / "run.yaml"
    with pytest.raises(ConfigError) as error:
        load_config(sweep)
    assert str(error.value).splitlines() == [
        f"{sweep} is a sweep, not the config of a run",
        "  allowed: sections such as model:, data:",
        f"  next:    run it with `striate sweep {sweep}`, or list its runs with --plan",
    ]
    with pytest.raises(ConfigError) as error:
        Plan(run)
    assert str(error.value).splitlines() == [
        f"{run} is the config of a run, not a sweep",
        "  allowed: base: and grid:, runs: or folders:",
        f"  next:    name it as the base: of a sweep, or run it alone with `striate run {run}`",
    ]


def test_a_rung_is_a_shorter_training_that_is_not_asked(tmp_path: Path) -> None:
    plan = planned(tmp_path, grid={"train.lr": [0.1]}, set={"prune.remove": 2, "evaluate.packs": ["p"]})
    (run,) = plan.runs
    short = plan.on_rung(run, 0.25)
    assert (short.name, short.config.train.max_steps, short.rung) == ("lr=0.1@25", 10, 0.25)
    assert (short.config.prune.remove, short.config.evaluate.packs) == (0, ())
    assert (run.config.train.max_steps, run.config.prune.remove) == (40, 2)


def runs_of(folder: Path) -> tuple[Planned, ...]:
    grid = {"select.region": ["all", "none"], "train.lr": [1.0, 2.0, 3.0]}
    return planned(folder, grid=grid, choose={"by": "exact_match"}).runs


def test_runs_that_differ_in_the_rate_alone_are_one_class(tmp_path: Path) -> None:
    classes = classes_of(runs_of(tmp_path), ["train.lr"])
    assert [[run.settings["train.lr"] for run in same] for same in classes] == [[1.0, 2.0, 3.0]] * 2
    assert [len(same) for same in classes_of(runs_of(tmp_path), ["train.lr", "select.region"])] == [6]


@pytest.mark.parametrize(("metric", "best"), [("exact_match", [3.0, 1.0]), ("loss", [2.0, 1.0])])
def test_the_better_half_of_a_class_goes_on(metric: str, best: list[float], tmp_path: Path) -> None:
    plan = planned(tmp_path, grid={"train.lr": [1.0, 2.0, 3.0, 4.0]}, choose={"by": metric})
    values = {1.0: 0.5, 2.0: 0.1, 3.0: 0.7, 4.0: None}
    choose = plan.sweep.choose
    assert choose is not None
    order = ranked(plan.runs, choose, lambda run: values[run.settings["train.lr"]])
    assert [run.settings["train.lr"] for run in order][:2] == best
    kept = survivors(plan.runs, choose, lambda run: values[run.settings["train.lr"]])
    assert [run.settings["train.lr"] for run in kept] == sorted(best)


def test_a_best_rate_at_an_end_of_those_tried_is_told(tmp_path: Path) -> None:
    plan = planned(tmp_path, grid={"train.lr": ["1e-4", 1.0e-3, 1.0e-2], "select.region": ["all"]})
    told = [at_an_end([run], ["train.lr", "select.region"], plan.runs) for run in plan.runs]
    assert told == [
        ["region=all,lr=1e-4: train.lr 1e-4 is the lowest that was tried"],
        [],
        ["region=all,lr=0.01: train.lr 0.01 is the highest that was tried"],
    ]
    assert at_an_end(plan.runs[:1], ["train.lr"], plan.runs[:1]) == []
    unlike = planned(tmp_path, grid={"train.lr": ["auto", 1.0]}).runs
    assert at_an_end(unlike, ["train.lr"], unlike) == []


def test_the_ends_are_those_of_its_own_row(tmp_path: Path) -> None:
    runs = [{"name": "wide", "set": {"seed": 3}}, {"name": "one", "set": {"seed": 4, "train.lr": 9.0}}]
    plan = planned(tmp_path, runs=runs, each={"train.lr": [1.0, 2.0, 3.0]})
    told = [at_an_end([run], ["train.lr"], plan.runs) for run in plan.runs]
    assert [bool(lines) for lines in told] == [True, False, True, False]
