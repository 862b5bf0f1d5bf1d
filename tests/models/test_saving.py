"""A folder is written whole or not at all, and never over another."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from striate.errors import ArtifactError
from striate.models.io.load import Loaded
from striate.models.io.save import save_model

Batch = dict[str, Any]


def test_saving_never_writes_over_a_folder(tiny_llava: Loaded, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep me")
    with pytest.raises(ArtifactError, match=r"out exists already"):
        save_model(tiny_llava.model, tiny_llava.processor, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep me"
    (tmp_path / "out" / "mine.txt").unlink()
    save_model(tiny_llava.model, tiny_llava.processor, tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (SafetensorError("I/O error: No space left on device"), "I/O error: No space left on device"),
    ],
)
def test_a_full_disk_leaves_nothing_behind(
    tiny_llava: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
) -> None:
    def fail(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(tiny_llava.model, "save_pretrained", fail)
    with pytest.raises(ArtifactError, match=f"can't write .*out: {text}"):
        save_model(tiny_llava.model, tiny_llava.processor, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_save_leaves_nothing_behind(
    tiny_llava: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny_llava.processor, "save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_model(tiny_llava.model, tiny_llava.processor, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tiny_llava: Loaded, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="can't write"):
        save_model(tiny_llava.model, tiny_llava.processor, tmp_path / "file" / "out")
