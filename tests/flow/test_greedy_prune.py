"""`prune.scorer: answer-loss` within a run: no scores needed, and an interrupted ranking goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from striate.artifacts import PruneRecord, Region, UnfinishedRanking, read_document
from striate.config import RunConfig
from striate.errors import ConfigError
from striate.pipeline import Flow
from striate.pipeline.pruning import layer_ranking

GREEDY = ("prune.scorer=answer-loss", "prune.remove=50%", "prune.samples=6", "evaluate.packs=[]", "select.region=ids:1")


def pruned(flow: Flow) -> PruneRecord:
    flow.analyze()
    flow.select()
    flow.train()
    return flow.prune()


def test_an_interrupted_ranking_goes_on(
    run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(*GREEDY, "analyze.scorers=[block-influence]", "train.max_steps=1")
    record = pruned(Flow(config, tmp_path / "whole", progress=listener()))
    assert record.scorer == "answer-loss"
    assert sorted(cut.layer for cut in record.cuts) == list(record.removed)
    assert set(record.cuts[0].candidates) == {0, 2, 3}
    write = layer_ranking.write_document

    def stopping(path: Path, document: UnfinishedRanking) -> None:
        write(path, document)
        raise KeyboardInterrupt

    monkeypatch.setattr(layer_ranking, "write_document", stopping)
    with pytest.raises(KeyboardInterrupt):
        pruned(Flow(config, tmp_path / "cut", progress=listener()))
    monkeypatch.setattr(layer_ranking, "write_document", write)
    assert not (tmp_path / "cut" / "pruned").exists()
    heard = listener()
    again = pruned(Flow(config, tmp_path / "cut", progress=heard))
    assert "prune: goes on after cut 1 of 2" in heard.said
    assert [cut.layer for cut in again.cuts] == [cut.layer for cut in record.cuts]
    files = [tmp_path / run / "pruned" / "model.safetensors" for run in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (tmp_path / "cut" / layer_ranking.UNFINISHED).exists()
    heard = listener()
    pruned(Flow(config, tmp_path / "cut", progress=heard))
    assert "prune: up to date" in heard.said


def test_a_ranking_of_other_settings_is_not_gone_on_with(
    run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path
) -> None:
    config = run_config(*GREEDY, "analyze.scorers=[block-influence]", "train.max_steps=1", "prune.remove=1")
    first = pruned(Flow(config, tmp_path / "run", progress=listener()))
    wrong = first.cuts[0].model_copy(
        update={"layer": next(layer for layer in (0, 2, 3) if layer != first.cuts[0].layer)}
    )
    other = UnfinishedRanking(key="another", cuts=(wrong,))
    layer_ranking.write_document(tmp_path / "run" / layer_ranking.UNFINISHED, other)
    again = run_config(*GREEDY, "analyze.scorers=[block-influence]", "train.max_steps=1", "prune.text_weight=0.25")
    record = pruned(Flow(again, tmp_path / "run", progress=listener(), overwrite=True))
    assert record.cuts[0].layer == first.cuts[0].layer
    assert read_document(tmp_path / "run" / "prune.json", PruneRecord) == record


def test_a_scorer_that_nobody_knows_is_refused(run_config: Callable[..., RunConfig]) -> None:
    with pytest.raises(
        ConfigError,
        match=r"'answerloss' is none of answer-loss, answer-accuracy, top, spaced, nor among analyze.scorers",
    ):
        run_config("prune.scorer=answerloss", "prune.remove=1")


def test_layers_can_go_by_their_place_without_scores(
    run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path
) -> None:
    config = run_config("prune.scorer=top", "prune.remove=1", "train.max_steps=1")
    flow = Flow(config, tmp_path / "run", progress=listener())
    flow.select()
    flow.train()
    record = flow.prune()
    region = read_document(tmp_path / "run" / "region.json", Region)
    assert record.removed == (max(region.outside),)
    assert record.scorer == "top"
    assert not (tmp_path / "run" / "scores.json").exists()
