"""A run that began with defaults which have changed goes on with them, unless other values are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from striate.config import RunConfig, dump_config, parse_config
from striate.runs.former_defaults import FORMER, as_it_began

RAW: dict[str, Any] = {"model": {"path": "owner/m"}, "data": {"train": ["d"]}, "prune": {"remove": 1}}


def config(*settings: str) -> RunConfig:
    return parse_config(RAW, settings)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def began(kept: Path, *settings: str) -> None:
    kept.write_text(dump_config(config(*settings)))


FORMERLY = ("prune={remove: 1, scorer: modality-block-influence, compensate: none}", "heal.lr=null")


def test_what_is_left_open_stays_as_the_run_has_it(kept: Path) -> None:
    began(kept, *FORMERLY)
    said: list[str] = []
    found = as_it_began(config(), kept, said.append)
    assert (found.prune.scorer, found.prune.compensate, found.heal.lr) == ("modality-block-influence", "none", None)
    assert said == [
        "prune.scorer stays modality-block-influence, prune.compensate stays none, heal.lr stays None:"
        " the default when this run began"
    ]


def test_what_is_asked_for_counts(kept: Path) -> None:
    began(kept, *FORMERLY)
    asked = config("prune.scorer=answer-loss", "prune.compensate=auto", "heal.lr=auto")
    assert as_it_began(asked, kept) == asked


def test_a_run_of_today_has_todays_defaults(kept: Path) -> None:
    began(kept)
    said: list[str] = []
    assert as_it_began(config(), kept, said.append) == config()
    assert said == []


def test_an_older_config_lacks_what_came_later(kept: Path) -> None:
    kept.write_text("model: {path: owner/m}\ndata: {train: [d]}\nprune: {remove: 1, scorer: top}\n")
    found = as_it_began(config(), kept)
    assert (found.prune.scorer, found.prune.compensate, found.heal.lr) == ("answer-loss", "none", None)


@pytest.mark.parametrize("content", [None, "prune: [", "model: 3"])
def test_where_nothing_can_be_read_nothing_changes(kept: Path, content: str | None) -> None:
    if content is not None:
        kept.write_text(content)
    assert as_it_began(config(), kept) == config()


def test_the_former_defaults_are_no_defaults_any_more() -> None:
    for section, values in FORMER.items():
        for name, value in values.items():
            assert getattr(getattr(config(), section), name) != value
