"""Analyze in a run folder: its tasks, its base checkpoint, and when scores are up to date."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from striate.config import RunConfig
from striate.errors import ArtifactError, ConfigError, StriateError
from striate.pipeline import Flow

CHANGE = "analyze.scorers=[parameter-change]"


@pytest.fixture
def base(llava_builder: Callable[..., Any], tmp_path: Path) -> Path:
    """An untuned checkpoint that differs in layer 2 alone."""
    model = llava_builder().model
    model.model.language_model.layers[2].mlp.down_proj.weight.data.mul_(1.5)
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_tasks_and_base_reach_the_scores(run_config: Callable[..., RunConfig], base: Path, tmp_path: Path) -> None:
    scorers = "analyze.scorers=[modality-block-influence, parameter-change]"
    config = run_config(scorers, "analyze.by=task", f"analyze.base={base}", "analyze.samples=13")
    scores = Flow(config, tmp_path / "run").analyze()
    assert set(scores.tasks) == {"colour", "text"}
    change = scores.of("parameter-change")
    assert change.samples == 0
    assert [layer for layer, value in enumerate(change.values) if value > 0] == [2]


def test_another_base_makes_scores_out_of_date(
    run_config: Callable[..., RunConfig], base: Path, llava_builder: Callable[..., Any], listener: Any, tmp_path: Path
) -> None:
    config, run = run_config(CHANGE, f"analyze.base={base}", "prune.remove=0"), tmp_path / "run"
    first = Flow(config, run).analyze()
    again = listener()
    assert Flow(config, run, progress=again).analyze() == first
    assert any("up to date" in line for line in again.said)
    llava_builder(seed=3).model.save_pretrained(base)
    with pytest.raises(ArtifactError, match="--overwrite"):
        Flow(config, run).analyze()
    assert Flow(config, run, overwrite=True).analyze() != first


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("analyze.base=nowhere/at-all", "analyze.base 'nowhere/at-all' is no folder"),
        ("analyze.by=all", "parameter-change compares with the untuned checkpoint, and none is named"),
    ],
)
def test_a_base_that_is_missing_is_said(
    run_config: Callable[..., RunConfig], tmp_path: Path, setting: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Flow(run_config(CHANGE, setting, "prune.remove=0"), tmp_path / "run").analyze()
    assert isinstance(caught.value, StriateError)
