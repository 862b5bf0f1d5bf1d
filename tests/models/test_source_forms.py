"""Every form and kind of file gives the same tokens, labels and pictures of the same conversations, and trains."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from source_kit import FORMS, TALKS, llava, picture, write_pictures
from typer.testing import CliRunner

from striate.cli import app
from striate.data.collate import Collator
from striate.data.parsing import parse_sample
from striate.data.reading import read_samples
from striate.data.samples import Sample
from striate.data.sources.image_folder import ImageFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from striate.models.io.load import Loaded

Batch = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def loaded(llava_builder: Callable[..., Loaded]) -> Loaded:
    return llava_builder()


@pytest.fixture(scope="module")
def expected(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> tuple[Batch, list[float]]:
    """The batch of the conversations, and what a step learns from it."""
    folder = tmp_path_factory.mktemp("expected")
    write_pictures(folder)
    pictures = ImageFolder(folder)
    samples = [parse_sample(llava(talk), talk.id, talk.id, pictures) for talk in TALKS]
    return batch_and_step(loaded, samples)


def batch_and_step(loaded: Loaded, samples: Sequence[Sample]) -> tuple[Batch, list[float]]:
    """Return the samples as a batch, and the gradient's sum of every tensor after a step's backward pass."""
    batch = Collator(loaded.processor, 256, train=True)(samples)
    loaded.model.zero_grad()
    loaded.model(**batch).loss.backward()
    return batch, [float(value.grad.sum()) for value in loaded.model.parameters() if value.grad is not None]


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_the_same_conversations_are_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: Loaded, expected: tuple[Batch, list[float]]
) -> None:
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    written = FORMS[name](tmp_path / "data")
    samples = read_samples(written.path, options=written.options)
    assert [sample.id for sample in samples] == [talk.id for talk in TALKS]
    batch, learned = batch_and_step(loaded, samples)
    assert batch.keys() == expected[0].keys()
    assert [key for key in batch if not torch.equal(batch[key], expected[0][key])] == []
    assert learned == expected[1]
    for talk, sample in zip(TALKS, samples, strict=True):
        assert [found.read_bytes() for found in sample.images] == ([picture(talk.picture)] if talk.picture else [])


@pytest.mark.parametrize("name", FORMS)
def test_forms_are_shown(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    written = FORMS[name](tmp_path / "data")
    options = {**written.options.noted(), "images": list(map(str, written.options.images))}
    settings = [part for key, value in options.items() for part in ("--set", f"data.{key}={json.dumps(value)}")]
    shown = CliRunner().invoke(app, ["data", str(written.path), *settings, "--samples", "10", "--json"])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert (found["samples"], found["pictured"], found["pictures"]["count"], found["answers"]) == (10, 8, 8, 10)
    learned = {row["id"]: [piece["text"] for piece in row["pieces"] if piece["learned"]] for row in found["shown"]}
    assert learned == {talk.id: [talk.answer] for talk in TALKS}
