"""Which runs of a sweep are held against each other while seeds are missing."""

from __future__ import annotations

from pathlib import Path

from striate.config import load_config
from striate.config.sweep_settings import SEED
from striate.pipeline.sweeps.plan import Planned
from striate.pipeline.sweeps.table import of_seeds

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
