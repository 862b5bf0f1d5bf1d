"""A finished training is never thrown away: what is lost beside its checkpoint is restored, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from striate.config import RunConfig
from striate.errors import ArtifactError
from striate.pipeline import Flow
from striate.storage.fingerprints import RECORD_FILE

OUTPUTS = ["train.json", "train_log.jsonl", "checkpoint/README.md", "checkpoint/adapter_model.safetensors"]
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def config(run_config: Callable[..., RunConfig]) -> RunConfig:
    return run_config("train.max_steps=2", "prune.remove=0")


@pytest.fixture(scope="module")
def finished(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "run"
    flow = Flow(config, path)
    flow.select()
    flow.train()
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def forget(run: Path, status: str | None) -> None:
    """Leave run.json as it is when the process ends before the training is noted as done."""
    record = json.loads((run / "run.json").read_text())
    stage = record["stages"].pop("train")
    if status:
        record["stages"]["train"] = {**stage, "status": status, "outputs": {}}
    (run / "run.json").write_text(json.dumps(record))


def killed(run: Path) -> None:
    """After checkpoint/ is in its place, and before anything else is."""
    forget(run, None)
    (run / "train.json").unlink()
    (run / ".training/checkpoint-2").mkdir(parents=True)


CHANGES: dict[str, Change] = {
    "a byte more in the log": lambda run: (run / "train_log.jsonl").open("a").write("\n"),
    "a log cut short": lambda run: (run / "train_log.jsonl").write_text('{"step": 1, "lo'),
    "no log": lambda run: (run / "train_log.jsonl").unlink(),
    "no record": lambda run: (run / "train.json").unlink(),
    "a damaged record": lambda run: (run / "train.json").write_text("{"),
    "killed": killed,
    "killed before the card": lambda run: forget(run, None),
    "a full disk": lambda run: (forget(run, "failed"), (run / "train.json").unlink()),
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_lost_beside_a_whole_checkpoint_is_restored(
    config: RunConfig, finished: Path, run: Path, listener: Any, change: str, overwrite: bool
) -> None:
    CHANGES[change](run)
    heard = listener()
    Flow(config, run, progress=heard, overwrite=overwrite).train()
    assert heard.steps == 0
    assert any(said.startswith("train: finished before") for said in heard.said)
    for name in OUTPUTS:
        assert (run / name).read_bytes() == (finished / name).read_bytes(), name
    assert not (run / ".training").exists()
    again = listener()
    Flow(config, run, progress=again).train()
    assert again.said == ["train: up to date"]


def test_without_its_own_record_a_checkpoint_is_kept_and_the_training_refused(
    config: RunConfig, run: Path, listener: Any
) -> None:
    """As in run folders of earlier versions."""
    (run / "checkpoint" / RECORD_FILE).unlink()
    (run / "train_log.jsonl").unlink()
    weights = (run / "checkpoint/adapter_model.safetensors").read_bytes()
    with pytest.raises(ArtifactError, match=r"checkpoint is there, and what tells .* is missing or changed") as error:
        Flow(config, run, progress=listener()).train()
    assert "restore what is missing, move checkpoint away, or use --overwrite" in str(error.value)
    assert (run / "checkpoint/adapter_model.safetensors").read_bytes() == weights
    heard = listener()
    Flow(config, run, progress=heard, overwrite=True).train()
    assert heard.steps == 2


def test_a_damaged_checkpoint_is_not_taken_for_a_finished_training(config: RunConfig, run: Path, listener: Any) -> None:
    forget(run, None)
    file = run / "checkpoint/adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match="checkpoint is there"):
        Flow(config, run, progress=listener()).train()
    assert file.read_bytes() == content


def test_other_settings_are_not_what_it_was_made_from(
    run_config: Callable[..., RunConfig], run: Path, listener: Any
) -> None:
    forget(run, "failed")
    other = run_config("train.max_steps=2", "prune.remove=0", "train.lr=0.5")
    with pytest.raises(ArtifactError, match=r"train\.lr: 0\.01 -> 0\.5"):
        Flow(other, run, progress=listener())
    heard = listener()
    Flow(other, run, progress=heard, overwrite=True).train()
    assert heard.steps == 2
