"""Trainings whose rule for image tokens is checked first: what is measured, recorded, said, and refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from training_kit import Run, Said, runner, weights

from striate.artifacts import Region, TrainRecord, read_document
from striate.config import LoraSection, MachineSection, RunConfig, TrainSection
from striate.data.reading import read_samples
from striate.errors import TrainingError
from striate.models.visual_token_skipping.rule import skipping_of
from striate.pipeline import Flow
from striate.pipeline.validate import check_run
from striate.training import image_check

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

REGION = Region(layers=(1, 3), num_layers=4, spec="ids:1,3")
RULED = TrainSection(
    lora=LoraSection(r=4, alpha=8, dropout=0.3),
    batch_size=4,
    lr=1e-2,
    max_length=96,
    max_steps=2,
    image_tokens="region",
)


@pytest.fixture
def run(tmp_path: Path, pack_dir: Path) -> Run:
    return runner(tmp_path, read_samples(pack_dir), REGION, MachineSection(micro_batch=2))


def test_the_record_tells_what_the_rule_costs_and_weights_are_those_without_the_check(
    tiny_llava: Loaded, run: Run, pack_dir: Path
) -> None:
    free, checked, held = (copy.deepcopy(tiny_llava) for _ in range(3))
    assert run(free, "free", RULED.model_copy(update={"image_check": None})).image_check is None
    said = Said()
    found = run(checked, "checked", RULED, progress=said).image_check
    assert found is not None
    pictured = sum(bool(sample.images) for sample in read_samples(pack_dir))
    assert (found.samples, found.held_out, found.allowed) == (pictured, False, 0.3)
    told = f"loss of the start model is {found.ruled:.3f} so and {found.whole:.3f} in whole layers ({pictured} training"
    assert any(told in line for line in said.said)
    expected = weights(free.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(checked.model).items())
    apart = [sample for sample in read_samples(pack_dir) if sample.images][:3]
    full = RULED.model_copy(update={"method": "full"})
    other = run(held, "held", full, held_out=apart).image_check
    assert other is not None
    assert (other.samples, other.held_out) == (3, True)
    assert other.whole != found.whole
    # Who trains further has nothing to lose.
    assert run(held, "again", full).image_check is None


@pytest.mark.parametrize("tokens", ["region", "region while training"])
def test_a_rule_that_costs_too_much_is_refused_before_a_step(
    tiny_llava: Loaded, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: str
) -> None:
    monkeypatch.setattr(image_check, "_sums", lambda *_: (10.0, 20.0, 10.0))
    with pytest.raises(TrainingError) as caught:
        run(tiny_llava, "run", RULED.model_copy(update={"image_tokens": tokens}))
    assert "rises from 1.00 to 2.00 nats a token, by 1.00" in str(caught.value)
    assert "a rise of at most 0.3 (train.image_check)" in str(caught.value)
    assert skipping_of(tiny_llava.model) is None
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_check_tells_what_a_rule_may_cost_and_what_it_did(
    run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path
) -> None:
    ruled, out = ("select.region=ids:1", "train.image_tokens=region"), tmp_path / "run"

    def line(*more: str) -> str:
        return next((one for one in check_run(run_config(*more), out) if one.startswith("images ")), "")

    assert line() == ""
    also = line(*ruled, "train.image_also=ids:0")
    assert "computed in the region and in ids:0; before training the start model's loss may rise by 0.3 nats" in also
    assert "is not measured (train.image_check is null)" in line(*ruled, "train.image_check=null")
    flow = Flow(run_config(*ruled), out, progress=listener())
    flow.select()
    flow.train()
    found = read_document(out / "train.json", TrainRecord).image_check
    assert found is not None
    assert f"loss was {found.ruled:.3f} so, {found.whole:.3f} in whole layers" in line(*ruled)
