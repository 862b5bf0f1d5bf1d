"""One run from scores to a pruned model: INTERLACE's region, its layers in turns, and what it gives up removed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from striate.config import RunConfig
from striate.errors import SpecError, TrainingError
from striate.pipeline import Flow

TURNS = ["train.resample.active=1", "train.resample.every=1", "prune.remove=2"]
INTERLACE = ["select.region=interlace:1", "analyze.scorers=[angular-distance, modality-block-influence]"]


def test_interlace_trains_and_gives_up(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = run_config(*INTERLACE, "prune.remove=2", "evaluate.packs=[]", "analyze.by=task")
    Flow(config, tmp_path / "run").everything()
    region, pruned = (json.loads((tmp_path / "run" / name).read_text()) for name in ("region.json", "prune.json"))
    assert (len(region["layers"]), len(region["removable"])) == (1, 1)
    assert set(region["removable"]) < set(pruned["removed"])
    assert not set(region["layers"]) & set(pruned["removed"])
    assert pruned["scorer"] == "interlace, then modality-block-influence"
    left = json.loads((tmp_path / "run" / "pruned" / "region.json").read_text())
    assert (len(left["layers"]), left["num_layers"], left["removable"]) == (1, 2, [])


def test_turns_are_in_the_record_of_a_run(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    flow = Flow(run_config(*TURNS, "select.region=uniform:50%"), tmp_path / "run")
    flow.select()
    record = flow.train()
    assert record.resampled
    assert set(record.resampled.steps_open) == {0, 2}
    assert sum(record.resampled.steps_open.values()) == record.steps
    lines = (tmp_path / "run" / "train_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["open_layers"] for line in lines].count([0]) == record.resampled.steps_open[0]


def test_what_can_not_work_is_said_before_anything_runs(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    for overrides, kind, words in (
        (["select.region=coverage:block-influence:1"], SpecError, r"needs scores by task, and analyze\.by is 'all'"),
        (["select.region=interlace:1"], SpecError, "needs scores of 'angular-distance'"),
        (["train.resample.active=3"], TrainingError, r"train\.resample\.active is 3, and region 'uniform:50%' has 2"),
    ):
        flow = Flow(run_config(*overrides), tmp_path / kind.__name__ / overrides[0][-8:].replace(":", ""))
        with pytest.raises(kind, match=words):
            flow.everything()
        assert flow.run.record.stages == {}
