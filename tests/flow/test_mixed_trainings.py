"""After a stop nothing goes on with another base, processor, template, picture or setting; workers change no bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from striate.config import RunConfig
from striate.errors import ArtifactError, TrainingError
from striate.pipeline import Flow

ADAPTER = "checkpoint/adapter_model.safetensors"


def other_weights(model: Path, pack: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, model / "model.safetensors", {"format": "pt"})


def other_processor(model: Path, pack: Path) -> None:
    file = model / "processor_config.json"
    config = json.loads(file.read_text())
    config["image_processor"]["image_mean"] = [0.1, 0.2, 0.3]
    file.write_text(json.dumps(config))


def other_template(model: Path, pack: Path) -> None:
    file = model / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|im_end|>", "<|im_end|>\n"))


def other_pictures(model: Path, pack: Path) -> None:
    one, *rest = sorted((pack / "images").iterdir())
    for picture in rest:
        shutil.copyfile(one, picture)


CHANGES: dict[str, Callable[[Path, Path], None]] = {
    "base weights": other_weights,
    "processor": other_processor,
    "chat template": other_template,
    "pictures": other_pictures,
    "rate": lambda model, pack: None,
    "seed": lambda model, pack: None,
}
QUICK = ("pictures", "seed")
SETTINGS = {"rate": "train.lr=0.5", "seed": "seed=3"}


class Run:
    """A run on a model and a pack of its own."""

    def __init__(self, config: Callable[..., RunConfig], listener: Any, model: Path, pack: Path, folder: Path) -> None:
        self._config, self._listener = config, listener
        self.model, self.pack, self.folder = model, pack, folder

    def train(self, name: str, *settings: str, stop: int = 0, overwrite: bool = False) -> list[str]:
        def on_step(step: int) -> None:
            if step == stop:
                raise KeyboardInterrupt

        heard = self._listener(on_step)
        self.said: list[str] = heard.said
        paths = (f"model.path={self.model}", f'data.train=["{self.pack}"]', "train.max_steps=4", "prune.remove=0")
        flow = Flow(self._config(*paths, *settings), self.folder / name, progress=heard, overwrite=overwrite)
        flow.select()
        flow.train()
        return self.said


@pytest.fixture
def run(
    run_config: Callable[..., RunConfig], listener: Any, tiny_llava_dir: Path, pack_dir: Path, tmp_path: Path
) -> Run:
    return Run(run_config, listener, tiny_llava_dir, pack_dir, tmp_path)


@pytest.mark.parametrize(
    "change", [name if name in QUICK else pytest.param(name, marks=pytest.mark.attack) for name in CHANGES]
)
def test_what_is_another_training_is_refused_and_overwriting_begins_anew(run: Run, change: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        run.train("cut", stop=2)
    # As after a kill: run.json knows nothing of the training.
    record = json.loads((run.folder / "cut/run.json").read_text())
    del record["stages"]["train"]
    (run.folder / "cut/run.json").write_text(json.dumps(record))
    CHANGES[change](run.model, run.pack)
    settings = [SETTINGS[change]] if change in SETTINGS else []
    with pytest.raises((ArtifactError, TrainingError)) as error:
        run.train("cut", *settings)
    assert "--overwrite" in error.value.next_step
    with pytest.raises(KeyboardInterrupt):
        run.train("cut", *settings, overwrite=True, stop=1)
    assert any(line.startswith("training begins anew: ") for line in run.said)
    assert not any(line.startswith("going on") for line in run.said)


@pytest.mark.attack
def test_the_same_training_goes_on_with_overwriting_too(run: Run) -> None:
    with pytest.raises(KeyboardInterrupt):
        run.train("cut", stop=2)
    assert "going on from step 1 of 4" in run.train("cut", overwrite=True)


@pytest.mark.parametrize("workers", [(1, 0), pytest.param((2, 1), marks=pytest.mark.attack)])
def test_dropout_depends_neither_on_workers_nor_on_interruptions(run: Run, workers: tuple[int, int]) -> None:
    more = ("train.max_steps=6", "train.lora.dropout=0.3")
    run.train("no worker", *more)
    expected = load_file(run.folder / "no worker" / ADAPTER)
    # Within the second of two epochs.
    with pytest.raises(KeyboardInterrupt):
        run.train("cut", *more, f"machine.workers={workers[0]}", stop=6)
    assert "going on from step 5 of 6" in run.train("cut", *more, f"machine.workers={workers[1]}")
    found = load_file(run.folder / "cut" / ADAPTER)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
