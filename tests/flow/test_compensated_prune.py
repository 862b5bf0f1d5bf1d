"""`prune.compensate` within a run: recorded, reloaded to the bit, and the same after an interruption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText

from striate.artifacts import PruneRecord
from striate.config import RunConfig
from striate.errors import ConfigError
from striate.pipeline import Flow
from striate.stages import prune as stage

SETTINGS = ("prune.remove=1", "prune.samples=6", "evaluate.packs=[]", "select.region=ids:0", "train.max_steps=1")
BY_ANSWERS = (*SETTINGS, "prune.scorer=answer-loss", "analyze.scorers=[block-influence]")
BY_PLACE = (*SETTINGS, "prune.scorer=top", "analyze.scorers=[block-influence]")


def pruned(flow: Flow) -> PruneRecord:
    flow.analyze()
    flow.select()
    flow.train()
    return flow.prune()


def weights_of(run: Path) -> bytes:
    return (run / "pruned" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("settings", [BY_ANSWERS, BY_PLACE], ids=["greedy", "by place"])
def test_a_run_compensates_and_tells_it(
    run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    plain = pruned(Flow(run_config(*settings), tmp_path / "plain", progress=listener()))
    heard = listener()
    config = run_config(*settings, "prune.compensate=refit")
    record = pruned(Flow(config, tmp_path / "refit", progress=heard))
    assert plain.compensation is None
    assert record.removed == plain.removed
    assert record.compensation is not None
    assert record.compensation.samples == 6
    assert record.self_test is not None
    assert record.self_test.max_logit_difference == 0
    (gap,) = record.compensation.gaps
    assert gap.removed == record.removed
    assert gap.after is not None
    assert gap.before is not None
    assert gap.after < gap.before
    told = f"prune: layer {gap.layer} stands in for layer {gap.removed[0]}: held-out error"
    assert any(said.startswith(told) for said in heard.said)
    assert weights_of(tmp_path / "refit") != weights_of(tmp_path / "plain")
    card = (tmp_path / "refit" / "pruned" / "README.md").read_text()
    assert f"Compensated by refit on 6 samples: layer {gap.layer} for {gap.removed[0]} (held-out error" in card
    assert "Compensated" not in (tmp_path / "plain" / "pruned" / "README.md").read_text()
    # The checkpoint is a stock one: transformers alone finds every tensor in its place.
    _, loading = AutoModelForImageTextToText.from_pretrained(tmp_path / "refit" / "pruned", output_loading_info=True)
    assert not any(loading.values())
    heard = listener()
    pruned(Flow(config, tmp_path / "refit", progress=heard))
    assert "prune: up to date" in heard.said


def test_an_interrupted_compensation_goes_on_to_the_same_bytes(
    run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(*BY_ANSWERS, "prune.compensate=scale")
    pruned(Flow(config, tmp_path / "whole", progress=listener()))

    def stopping(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "remove_layers", stopping)
        with pytest.raises(KeyboardInterrupt):
            pruned(Flow(config, tmp_path / "cut", progress=listener()))
    assert not (tmp_path / "cut" / "pruned").exists()
    heard = listener()
    record = pruned(Flow(config, tmp_path / "cut", progress=heard))
    assert "prune: goes on after cut 1 of 1" in heard.said
    assert record.compensation is not None
    assert record.compensation.method == "scale"
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "whole")


def test_a_method_that_nobody_knows_is_refused(run_config: Callable[..., RunConfig]) -> None:
    with pytest.raises(ConfigError, match=r"prune.compensate.*'none', 'refit' or 'scale'"):
        run_config("prune.compensate=best")
