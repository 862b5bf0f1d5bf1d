"""Healing within a run: its own stage and files, gone on with after a kill, and what a changed setting does again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from striate.artifacts import HealRecord, PruneRecord, read_document
from striate.config import RunConfig
from striate.errors import ArtifactError, StriateError
from striate.pipeline import Flow
from striate.pipeline.pruning import healing_run
from striate.progress import Silent

SHORT = (
    "analyze.scorers=[block-influence]",
    "prune.scorer=block-influence",
    "train.max_steps=1",
    "train.lora.dropout=0",
    "evaluate.packs=[]",
)
HEAL = (*SHORT, "heal.steps=3", "heal.hidden=0.5")


class Stopped(BaseException):
    """What stands for a kill."""


def run(config: RunConfig, out: Path, heard: Any, overwrite: bool = False) -> None:
    """Prune and heal in a run that is tuned."""
    Flow(config, out, progress=heard, overwrite=overwrite).prune()


@pytest.fixture(scope="module")
def tuned(run_config: Callable[..., RunConfig], listener: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to its tuned model: to be copied."""
    flow = Flow(run_config(*HEAL), tmp_path_factory.mktemp("tuned") / "run", progress=listener())
    flow.analyze()
    flow.select()
    flow.train()
    return flow.out


@pytest.fixture(scope="module")
def whole(
    tuned: Path, run_config: Callable[..., RunConfig], listener: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run that was healed without interruption."""
    out = tmp_path_factory.mktemp("healed") / "run"
    shutil.copytree(tuned, out)
    run(run_config(*HEAL), out, listener())
    return out


def weights_of(out: Path, folder: str = "pruned") -> bytes:
    return (out / folder / "model.safetensors").read_bytes()


def test_a_healed_run_and_what_it_leaves(whole: Path) -> None:
    record = read_document(whole / "heal.json", HealRecord)
    rows = [json.loads(line) for line in (whole / "heal_log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert record.first == {name: rows[0][name] for name in ("loss", "ce", "kl", "hidden")}
    assert record.self_test is not None
    assert record.self_test.max_logit_difference == 0
    assert read_document(whole / "prune.json", PruneRecord).self_test is not None
    assert weights_of(whole) != weights_of(whole, "unhealed")
    assert not (whole / ".healing").exists()
    assert not list((whole / "pruned").glob("adapter*"))
    regions = [json.loads((whole / folder / "region.json").read_text()) for folder in ("pruned", "unhealed")]
    assert regions[0] == regions[1]
    assert "Healed after pruning: 3 steps on 12 samples, 1 of them without a picture" in (
        whole / "pruned" / "README.md"
    ).read_text(encoding="utf-8")
    assert "Healed" not in (whole / "unhealed" / "README.md").read_text(encoding="utf-8")


def test_what_is_up_to_date_is_not_done_again(whole: Path, run_config: Callable[..., RunConfig], listener: Any) -> None:
    heard = listener()
    run(run_config(*HEAL), whole, heard)
    assert {"prune: up to date", "heal: up to date"} <= set(heard.said)


def test_a_healed_model_that_is_missing_is_made_by_prune(
    tuned: Path, run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path
) -> None:
    shutil.copytree(tuned, tmp_path / "run")
    flow = Flow(run_config(*HEAL), tmp_path / "run", progress=listener())
    with pytest.raises(ArtifactError, match="run `striate prune` first"):
        flow.run.output("heal", "pruned", {})


@pytest.mark.parametrize("where", ["teacher", "step", "saved"])
def test_going_on_after_a_kill_gives_the_same_bytes(
    tuned: Path,
    whole: Path,
    run_config: Callable[..., RunConfig],
    listener: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Stopped

    def stopping(step: int) -> None:
        if where == "step" and step == 2:
            raise Stopped

    def writing(path: Path, document: Any) -> None:
        (stop if path.name == "heal.json" else written)(path, document)

    config, written = run_config(*HEAL), healing_run.write_document
    shutil.copytree(tuned, tmp_path / "run")
    with monkeypatch.context() as patched:
        if where == "teacher":
            patched.setattr("striate.stages.prune.prune", stop)
        if where == "saved":
            patched.setattr(healing_run, "write_document", writing)
        with pytest.raises(Stopped):
            run(config, tmp_path / "run", watched(listener(), stopping))
    heard = listener()
    run(config, tmp_path / "run", heard)
    assert any(line.startswith("going on from step ") for line in heard.said) == (where != "teacher")
    assert weights_of(tmp_path / "run") == weights_of(whole)
    logs = [(one / "heal_log.jsonl").read_text(encoding="utf-8").splitlines() for one in (tmp_path / "run", whole)]
    losses = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert losses[0] == losses[1]
    assert not (tmp_path / "run" / ".healing").exists()


def watched(heard: Any, on_step: Callable[[int], None]) -> Any:
    """Return a progress that calls `on_step` after every step of healing alone."""
    steps = 0

    @contextmanager
    def track(label: str, total: int) -> Iterator[Callable[[int], None]]:
        def advance(count: int) -> None:
            nonlocal steps
            if label == "heal":
                steps += count
                on_step(steps)

        yield advance

    heard.track = track
    return heard


def test_another_setting_heals_again_and_ranks_no_more(
    tuned: Path, run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(tuned, out)
    run(run_config(*SHORT), out, listener(), overwrite=True)
    unhealed = weights_of(out)
    with pytest.raises(ArtifactError, match=r"holds a run of another config: heal.steps: None -> 1"):
        run(run_config(*SHORT, "heal.steps=1"), out, listener())
    for more in (("heal.steps=1", "heal.lr=0.001"), ("heal.steps=1", "heal.lr=auto")):
        heard = listener()
        run(run_config(*SHORT, *more), out, heard, overwrite=True)
        assert "prune: up to date" in heard.said
        assert "heal: up to date" not in heard.said
        assert weights_of(out, "unhealed") == unhealed
    record, tuned_at = read_document(out / "heal.json", HealRecord), run_config(*SHORT).train.rate
    assert record.lr == tuned_at
    heard = listener()
    run(run_config(*SHORT), out, heard, overwrite=True)
    assert "prune: up to date" in heard.said
    assert weights_of(out) == unhealed
    assert not [path.name for path in out.iterdir() if "heal" in path.name or "teacher" in path.name]


@pytest.mark.parametrize(
    ("region", "said"),
    [
        ("besides", "unknown selector 'besides'"),
        ("ids:3", "names layer 3, but the model has 3 layers"),
        ("scores:block-influence:50%", "needs scores, and of the smaller model there are none"),
    ],
)
def test_layers_that_can_not_heal_are_told_before_any_is_ranked(
    tuned: Path, run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path, region: str, said: str
) -> None:
    shutil.copytree(tuned, tmp_path / "run")
    heard = listener()
    with pytest.raises(StriateError, match=said):
        run(run_config(*HEAL, f"heal.region={region}"), tmp_path / "run", heard, overwrite=True)
    assert heard.said == []
    assert not (tmp_path / "run/unhealed").exists()


def test_a_single_step_that_is_warm_up_is_said_to_change_nothing(
    tuned: Path, run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    said: list[str] = []

    class Hearing(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    shutil.copytree(tuned, tmp_path / "run")
    run(run_config(*SHORT, "heal.steps=1"), tmp_path / "run", Hearing(), overwrite=True)
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "run", "unhealed")
    assert any(line.startswith("no effect: the only step is warm-up") for line in said)
    assert any(line.startswith("heal: 1 step on 4 samples, ") for line in said)


def test_a_file_where_the_teacher_goes_is_told_in_words(
    tuned: Path, run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path
) -> None:
    shutil.copytree(tuned, tmp_path / "run")
    (tmp_path / "run/.teacher").touch()
    with pytest.raises(ArtifactError, match=r"can't make the folder .*\.teacher: File exists"):
        run(run_config(*HEAL), tmp_path / "run", listener())
    (tmp_path / "run/.teacher").unlink()
    run(run_config(*HEAL), tmp_path / "run", listener())
