"""The study's reduced sweep is what docs/study.md says: its arms, a factor 2 between rates, one projector's rate."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from striate.pipeline.sweeps.choosing import classes_of
from striate.pipeline.sweeps.plan import Plan

SWEEP = Path(__file__).parents[2] / "configs" / "study" / "reduced.yaml"


def test_the_reduced_study_is_as_it_was_designed() -> None:
    plan = Plan(SWEEP)
    choose = plan.sweep.choose
    assert choose is not None
    classes = classes_of(plan.runs, choose.over)
    assert [same[0].settings["select.region"] for same in classes] == ["all", "uniform:25%", "middle:25%", "top:25%"]
    for same in classes:
        rates = [float(str(run.config.train.lr)) for run in same]
        assert len(rates) >= 5
        assert {higher / lower for lower, higher in pairwise(rates)} == {2.0}
    configs = [run.config for run in plan.runs]
    assert {(config.data.max_train_samples, config.train.projector_lr, config.seed) for config in configs} == {
        (2000, 2e-4, 0)
    }
    assert len(choose.seeds) == 3
    # Test packs choose nothing: what is measured is held out of the training data.
    assert {str(config.data.validate) for config in configs} == {"5%"}
