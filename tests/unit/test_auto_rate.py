"""Learning rates that follow from what trains: the rule, who counts, and what is told of it."""

from __future__ import annotations

from typing import Any

import pytest

from striate.artifacts import Region
from striate.config import RunConfig, TrainSection, auto_rate, parse_config
from striate.config.learning_rate import healing_rate
from striate.pipeline.settled_rates import settled, told_rates
from striate.selectors.spec.grammar import resolve

RAW: dict[str, Any] = {"model": {"path": "owner/m"}, "data": {"train": ["d"]}}
QUARTER = resolve("uniform:25%", 32)


def config(*settings: str) -> RunConfig:
    return parse_config(RAW, settings)


def test_whole_weights_get_what_suits_all_layers_divided_by_the_share_that_trains() -> None:
    assert [auto_rate("full", share) for share in (1, 0.5, 0.25)] == [4e-4, 8e-4, 1.6e-3]
    # Two digits are as many as were measured, and as many as a person reads.
    assert auto_rate("full", 8 / 30) == 0.0015
    assert healing_rate("full", 1.6e-3) == 4e-4


def test_adapters_get_twice_the_rate_where_a_quarter_of_the_layers_trains() -> None:
    assert [auto_rate("lora", share) for share in (1, 0.5, 0.25, 0.0625)] == [1e-4, 1.4e-4, 2e-4, 4e-4]
    assert auto_rate("qlora", 0.25) == 2e-4
    assert healing_rate("lora", 2e-4) == 2e-4


def test_adapters_get_twice_the_rate_at_a_fourth_of_the_rank_and_full_weights_have_none() -> None:
    assert [auto_rate("lora", 0.25, rank) for rank in (8, 32, 128)] == [8e-4, 4e-4, 2e-4]
    assert auto_rate("full", 0.25, 8) == auto_rate("full", 0.25, 128)


@pytest.mark.parametrize(
    ("settings", "layers", "expected"),
    [
        ({"method": "full"}, 32, 4e-4),
        ({"method": "full"}, 8, 1.6e-3),
        ({"method": "full", "resample": {"active": 2}}, 8, 6.4e-3),
        # More open at a time than there are layers is refused elsewhere.
        ({"method": "full", "resample": {"active": 9}}, 8, 1.6e-3),
        ({"method": "lora"}, 16, 1.4e-4),
        ({"method": "full", "projector_lr": 3e-5}, 0, 3e-5),
        ({"method": "full", "lr": 0.25}, 8, 0.25),
    ],
)
def test_a_number_takes_the_place_of_auto(settings: dict[str, Any], layers: int, expected: float) -> None:
    section = TrainSection.model_validate({"lr": "auto", **settings}).settled(layers, 32)
    assert section.rate == expected
    assert TrainSection.model_validate(section.model_dump()) == section


def test_a_run_whose_rates_are_numbers_stays_as_it_is() -> None:
    run = config("train.lr=0.1", "prune={remove: 2, scorer: spaced}", "heal={steps: 3, lr: null}")
    assert settled(run, QUARTER) is run
    assert told_rates(run, QUARTER) == ""


@pytest.mark.parametrize(
    ("settings", "train", "heal", "told"),
    [
        (("train.lr=auto", "heal.lr=null"), 2e-4, None, "train.lr auto is 0.0002, of 8 of 32 layers"),
        (("train.lr=auto", "heal.lr=auto"), 2e-4, 2e-4, "train.lr auto is 0.0002, of 8 of 32 layers"),
        (
            ("train={lr: auto, method: full}", "heal={steps: 1, lr: auto}", "prune={remove: 4, scorer: spaced}"),
            1.6e-3,
            4e-4,
            "train.lr auto is 0.0016, of 8 of 32 layers; heal.lr auto is 0.0004",
        ),
        (
            ("train.lr=0.1", "heal={steps: 1, lr: auto}", "prune={remove: 4, scorer: spaced}"),
            0.1,
            0.1,
            "heal.lr auto is 0.1",
        ),
        (
            ("train.lr=0.1", "heal={steps: 1, method: full}", "prune={remove: 4, scorer: spaced}"),
            0.1,
            0.025,
            "heal.lr auto is 0.025",
        ),
        (
            ("train.lr=auto", "heal.lr=null", "prune={remove: 16, scorer: spaced, when: before}"),
            1.4e-4,
            None,
            "train.lr auto is 0.00014, of 8 of 16 layers",
        ),
    ],
)
def test_the_region_gives_a_run_its_numbers(
    settings: tuple[str, ...], train: float, heal: float | None, told: str
) -> None:
    run = settled(config(*settings), QUARTER)
    assert (run.train.lr, run.heal.lr) == (train, heal)
    assert told_rates(config(*settings), QUARTER) == told


def test_without_layers_the_projector_has_its_own_rate() -> None:
    none = Region(layers=(), num_layers=32, spec="none")
    run = config("train={lr: auto, method: full}")
    assert settled(run, none).train.lr == run.train.projector_lr
    assert told_rates(run, none) == ""
