"""What loggers get of a training: TensorBoard's files, W&B offline, what any is called with; the bar's figures."""

from __future__ import annotations

import json
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from training_kit import Run, Said, runner, weights

from striate.artifacts import Region
from striate.cli import console
from striate.config import LoraSection, MachineSection, TrainSection, parse_config
from striate.data.reading import read_samples
from striate.errors import ConfigError
from striate.pipeline import Flow, preflight
from striate.pipeline.validate import check_run

REGION = Region(layers=(1,), num_layers=4, spec="ids:1")
LORA = TrainSection(
    batch_size=4, max_steps=3, lr=1e-2, max_length=96, validate_every=2, lora=LoraSection(r=2, alpha=4, dropout=0.3)
)


@pytest.fixture
def start(tmp_path: Path, pack_dir: Path) -> Run:
    samples = read_samples(pack_dir)

    def call(loaded: Any, name: str, *loggers: str, **more: Any) -> Any:
        run = runner(tmp_path, samples[:8], REGION, MachineSection(micro_batch=4, log_to=loggers))
        return run(loaded, name, LORA, held_out=samples[8:], **more)

    return call


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_tensorboard_gets_every_step_and_changes_nothing(start: Run, llava_builder: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plain, logged = llava_builder(), llava_builder()
    start(plain, "plain")
    start(logged, "logged", "tensorboard")
    expected = weights(plain.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(logged.model).items())
    written = EventAccumulator(str(tmp_path / "logged" / "tensorboard")).Reload()
    found = {name: {one.step: one.value for one in written.Scalars(name)} for name in written.Tags()["scalars"]}
    log = rows(tmp_path / "logged")
    assert found["train/loss"] == pytest.approx({row["step"]: row["loss"] for row in log})
    assert found["train/learning_rate"] == pytest.approx({row["step"]: row["lr"] for row in log})
    held_out = {row["step"]: row["validation"]["loss"] for row in log if "validation" in row}
    assert list(held_out) == [2, 3]
    assert found["eval/loss"] == pytest.approx(held_out)


def test_wandb_writes_a_run_offline(start: Run, llava_builder: Any, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    start(llava_builder(), "logged", "wandb")
    import wandb

    wandb.finish()
    [run] = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    content = run.read_bytes()
    assert all(name in content for name in (b"train/loss", b"train/learning_rate", b"eval/visual_loss", b"logged"))


def test_loggers_get_each_step_by_their_own_names(
    start: Run, llava_builder: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """Any of them through Hugging Face's callback: here one that keeps what it is given."""
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    given: list[tuple[int, dict[str, float]]] = []

    class Keeps(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            given.append((state.global_step, logs))

    for name in ("mlflow", "trackio"):
        monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, name, Keeps)
    start(llava_builder(), "logged", "mlflow", "trackio")
    log = rows(tmp_path / "logged")
    assert [step for step, _ in given] == [1, 1, 2, 2, 3, 3]
    for (_, logs), row in zip(given[::2], log, strict=True):
        wanted = {"loss": row["loss"], "learning_rate": row["lr"], "grad_norm": row["grad_norm"]}
        wanted |= {f"eval_{name}": value for name, value in row.get("validation", {}).items()}
        assert {name: logs[name] for name in wanted} == wanted
        assert set(logs) - set(wanted) == {"projector_learning_rate", "seconds", "tokens", "slots"}


def test_a_logger_that_is_not_installed_is_told_of_before_the_model_is_loaded(
    run_config: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    config = run_config("machine.log_to=[trackio]")
    message = (
        r"machine\.log_to names trackio, which is not installed.*loggers whose packages are there"
        r".*pip install trackio, or leave it out"
    )
    flow = Flow(config, tmp_path / "run")
    monkeypatch.setattr(flow._models, "take", lambda label: pytest.fail("the model was loaded"))
    flow._models.load = flow._models.take  # type: ignore[method-assign]
    for refused in (flow.train, flow.everything, lambda: list(check_run(config))):
        with pytest.raises(ConfigError, match=f"(?s){message}"):
            refused()
    with pytest.raises(ConfigError, match="tensorboard"):
        parse_config({"model": {"path": "a/b"}, "data": {"train": ["d"]}}, ["machine.log_to=[comet]"])


def test_a_logger_that_can_t_be_imported_is_told_of_beforehand(
    run_config: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "trackio.py").write_text("raise RuntimeError('built for another numpy')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    with pytest.raises(ConfigError, match="names trackio, and importing trackio fails: built for another numpy"):
        list(check_run(run_config("machine.log_to=[trackio]")))


class Noted(Said):
    """A progress that remembers what was shown beside its bar."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_the_bar_shows_loss_speed_and_memory(start: Run, llava_builder: Any, tmp_path: Path) -> None:
    shown = Noted()
    start(llava_builder(), "run", progress=shown)
    log = rows(tmp_path / "run")
    assert len(shown.notes) == 3
    for index, note in enumerate(shown.notes):
        done = log[: index + 1]
        speed = sum(row["tokens"] for row in done) / sum(row["seconds"] for row in done)
        assert note.startswith(f"loss {done[-1]['loss']:.3f}, {speed:,.0f} tok/s, ")
        assert 0 < float(note.split()[-2]) < 100
        assert note.endswith(" GiB")


def test_the_terminal_s_bar_has_the_note() -> None:
    screen = console.SafeConsole()
    screen.file, screen._force_terminal, screen.width = StringIO(), True, 80
    progress = console.RichProgress(screen)
    progress.note("nothing is shown yet")
    with progress.track("train", 4000) as advance:
        advance(1234)
        progress.note("loss 1.500, 1,234 tok/s, 12.5 GiB")
    printed = screen.file.getvalue()
    assert "1234/4000" in printed
    # Nothing is cut on a terminal of 80 columns.
    assert "…" not in printed.rpartition("train")[2]
    assert "left" in printed
    assert "loss 1.500, 1,234 tok/s, 12.5 GiB" in printed
