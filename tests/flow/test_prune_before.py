"""`prune.when: before`: the start model loses layers, and the smaller model is tuned."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import striate
from striate.artifacts import PruneRecord, Retention, TrainRecord, read_document
from striate.config import RunConfig
from striate.errors import ArtifactError
from striate.pipeline import Flow

BEFORE = ("prune.when=before", "select.region=ids:1,3", "prune.scorer=block-influence", "evaluate.limit=4")
STAGES = ["analyze", "select", "prune", "train", "evaluate:start", "evaluate:tuned", "evaluate:pruned"]


@pytest.fixture(scope="module")
def whole(run_config: Callable[..., RunConfig], listener: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("before") / "run"
    Flow(run_config(*BEFORE), out, progress=listener()).everything()
    return out


def test_the_start_loses_layers_and_what_is_left_is_tuned(whole: Path, run_config: Callable[..., RunConfig]) -> None:
    assert list(json.loads((whole / "run.json").read_text())["stages"]) == STAGES
    record = read_document(whole / "prune.json", PruneRecord)
    (gone,) = record.removed
    assert gone in (0, 2)
    new = {old: number for number, old in enumerate(layer for layer in range(4) if layer != gone)}
    assert record.old_to_new == new
    # The weights that are left are those of the start, to the bit.
    start, pruned = (
        load_file(folder / "model.safetensors") for folder in (Path(run_config().model.path), whole / "pruned")
    )
    for name, tensor in pruned.items():
        old = re.sub(r"(?<=layers\.)\d+(?=\.)", lambda found: str([*new][int(found[0])]), name)
        assert tensor.equal(start[old if "language_model" in name else name])
    trained = read_document(whole / "train.json", TrainRecord).trainable
    assert (trained.region.layers, trained.region.num_layers) == ((new[1], new[3]), 3)
    adapter = load_file(whole / "checkpoint" / "adapter_model.safetensors")
    opened = {int(found[1]) for name in adapter if (found := re.search(r"language_model.*layers\.(\d+)\.", name))}
    assert opened == {new[1], new[3]}
    assert json.loads((whole / "checkpoint/adapter_config.json").read_text())["base_model_name_or_path"] == str(
        (whole / "pruned").resolve()
    )
    tuned = striate.load_model(whole / "checkpoint", device="cpu").model
    assert tuned.config.text_config.num_hidden_layers == 3


def test_it_is_said_what_is_held_against_what(whole: Path) -> None:
    retention = read_document(whole / "eval/retention.json", Retention)
    assert retention.against == {"tuned": "start", "pruned": "start"}
    assert retention.held == ()
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "Removing 1 layer before tuning " in page
    assert "Tuning 2 of 3 layers after pruning " in page
    cards = [(whole / folder / "README.md").read_text() for folder in ("pruned", "checkpoint")]
    assert "Visual instruction tuning" not in cards[0]
    assert "1 layer removed" in cards[0].partition("\n## ")[0]
    assert "tuned in 2 of 3 layers" in cards[1]
    assert "retention against the model before tuning (start)" in cards[1]


def test_nothing_is_done_twice(whole: Path, run_config: Callable[..., RunConfig], listener: Any) -> None:
    heard = listener()
    Flow(run_config(*BEFORE), whole, progress=heard).everything()
    assert heard.said == [f"{stage}: up to date" for stage in STAGES]


def test_what_was_killed_goes_on_to_the_same_weights(
    whole: Path, run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path
) -> None:
    def killed(step: int) -> None:
        if step == 2:
            raise KeyboardInterrupt

    out, config = tmp_path / "run", run_config(*BEFORE, "evaluate.packs=[]")
    with pytest.raises(KeyboardInterrupt):
        Flow(config, out, progress=listener(killed)).everything()
    assert (out / "pruned").is_dir()
    assert not (out / "checkpoint").exists()
    heard = listener()
    Flow(config, out, progress=heard).everything()
    assert "prune: up to date" in heard.said
    assert any(re.search(r"going on from step [12] of 4", line) for line in heard.said)
    weights = [load_file(run / "checkpoint/adapter_model.safetensors") for run in (whole, out)]
    assert weights[0].keys() == weights[1].keys()
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_training_waits_for_the_smaller_model(
    run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path
) -> None:
    flow = Flow(run_config(*BEFORE), tmp_path / "run", progress=listener())
    flow.analyze()
    flow.select()
    with pytest.raises(ArtifactError, match="prune"):
        flow.train()


def test_answers_of_the_start_rank_the_layers(
    run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path
) -> None:
    greedy = ("prune.scorer=answer-loss", "prune.samples=6", "evaluate.packs=[]")
    flow = Flow(
        run_config(*BEFORE, *greedy, "train.max_steps=1", "train.method=full"), tmp_path / "run", progress=listener()
    )
    flow.select()
    record = flow.prune()
    assert set(record.cuts[0].candidates) == {0, 2}
    flow.train()
    assert striate.load_model(tmp_path / "run/checkpoint", device="cpu").model.config.text_config.num_hidden_layers == 3


def test_the_adapter_of_a_run_in_a_relative_folder_loads_from_anywhere(
    run_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flow = Flow(run_config(*BEFORE, "train.max_steps=1"), Path("runs/one"))
    flow.analyze()
    flow.select()
    flow.prune()
    flow.train()
    monkeypatch.chdir("/")
    out = tmp_path / "runs/one"
    tuned = striate.load_model(out / "checkpoint", device="cpu").model
    assert tuned.config.text_config.num_hidden_layers == 3
    # A card that named runs/one would name somebody's model of the hub.
    assert "base_model: runs/" not in (out / "checkpoint/README.md").read_text(encoding="utf-8")
