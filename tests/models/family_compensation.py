"""Which closed forms of compensation a model type takes, proved on its tiny random model."""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from family_inputs import Batch

from striate.artifacts import Compensation
from striate.errors import ModelError
from striate.models.io.save import save_model
from striate.models.surgery.remove_layers import remove_layers
from striate.models.surgery.roundtrip_check import self_test
from striate.pruning.compensation.compensate import METHODS, compensate
from striate.scorers.streaming.batches import Batches

NEITHER = "no"


def compensation(
    whole: Any, inputs: Batch, labelled: Batch, removed: Collection[int], skipping: Any
) -> tuple[str, str]:
    """Return the methods that work, such as `refit, scale`, and why others are refused.

    Args:
        whole: the model with all layers; left as it is.
        inputs: what its forward takes.
        labelled: the same as a training batch.
        removed: layers that go.
        skipping: returns a copy of a model that leaves layers out, to compare with.
    """
    methods, reasons = [], {}
    for how in METHODS:
        twin = copy.deepcopy(whole)
        try:
            record = _compensated(twin, labelled, removed, how)
        except ModelError as error:
            reasons[how] = str(error).splitlines()[0].partition(" (")[0]
            _check_values(whole, twin, set())
            continue
        _check_values(whole, twin, {name for gap in record.gaps for name in gap.changed})
        _check_errors(record)
        expected = _logits(skipping(twin, removed), inputs)
        remove_layers(twin, sorted(removed))
        assert torch.equal(_logits(twin, inputs), expected), "the compensated model is not the one that was measured"
        if not methods:
            with TemporaryDirectory() as folder:
                save_model(twin, None, Path(folder) / "small")
                assert self_test(twin, Path(folder) / "small", inputs).max_logit_difference == 0
        methods.append(how)
    told = sorted(set(reasons.values()))
    return ", ".join(methods) or NEITHER, "; ".join(told)


def _compensated(model: Any, labelled: Batch, removed: Collection[int], how: Any) -> Compensation:
    """Compensate by the same two rows given twice: every second pair of samples is fitted to."""
    samples: Any = [SimpleNamespace(id=str(number)) for number in range(4)]
    batches: Any = Batches(samples, lambda part: labelled, len(next(iter(labelled.values()))))
    return compensate(model, batches, removed, how=how)


def _check_values(before: Any, after: Any, changed: Collection[str]) -> None:
    former, now = (dict(model.named_parameters()) for model in (before, after))
    moved = {name for name in former if not torch.equal(former[name], now[name])}
    assert moved == set(changed), f"{sorted(moved ^ set(changed))} moved, or should have"


def _check_errors(record: Compensation) -> None:
    errors = [(gap.before, gap.after) for gap in record.gaps if gap.before is not None and gap.after is not None]
    assert all(after <= before for before, after in errors), f"{record.method} does harm: {errors}"
    assert any(after < before for before, after in errors), f"{record.method} does not help: {errors}"


def _logits(model: Any, inputs: Batch) -> torch.Tensor:
    with torch.inference_mode():
        return model(**inputs, use_cache=False).logits
