"""Rows of a sweep's table: which runs are held against each other while seeds are missing, and their names."""

from __future__ import annotations

from pathlib import Path

from striate.config import load_config
from striate.config.sweep_settings import SEED, SweepConfig
from striate.pipeline.sweeps.plan import Planned
from striate.pipeline.sweeps.table import Table, of_seeds

CONFIG = load_config(Path(__file__).parents[2] / "configs" / "study" / "run.yaml")


def run(seed: int | None) -> Planned:
    return Planned(f"seed {seed}", {} if seed is None else {SEED: seed}, CONFIG)


def test_a_group_of_fewer_seeds_is_held_against_those_that_it_has() -> None:
    # The base config's own seed is 0.
    base = [run(None), run(1), run(2)]
    assert of_seeds(base, [run(0)]) == base[:1]
    assert of_seeds(base, [run(2), run(None)]) == [base[0], base[2]]
    assert of_seeds(base, base) == base
    assert of_seeds(base, [run(7)]) == base


def test_a_row_has_the_name_that_all_its_runs_have(tmp_path: Path) -> None:
    runs = [
        Planned(f"{row} {rate} {seed}", {"train.lr": rate, SEED: seed}, CONFIG, row=row)
        for row, rate, seed in (("a", 0.1, 0), ("a", 0.1, 1), ("b", 0.2, 0), ("c", 0.2, 1), ("", 0.3, 0))
    ]
    sweep = SweepConfig.model_validate({"base": "x", "grid": {"train.lr": [0.1]}})
    assert [group.name for group in Table(sweep, tmp_path).groups(runs)] == ["a", "", ""]
