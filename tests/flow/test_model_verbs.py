"""The verbs that make model folders, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from striate.cli import app
from striate.models.io.load import load_model


def striate(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_remove_layers_writes_a_smaller_model(tiny_llava_dir: Path, tmp_path: Path) -> None:
    result = striate("remove-layers", tiny_llava_dir, "--layers", "1, 2", "--out", tmp_path / "small")
    assert result.exit_code == 0, result.output
    assert "2 layers kept" in result.output
    assert str(tmp_path / "small") in result.output.replace("\n", "")
    assert len(load_model(tmp_path / "small").model.model.language_model.layers) == 2


@pytest.mark.parametrize(
    ("layers", "text"),
    [("1;2", "is no list of layers"), ("", "is no list of layers"), ("9", "no decoder layer 9"), ("-1", "is no list")],
)
def test_layers_that_make_no_sense_are_refused(layers: str, text: str, tiny_llava_dir: Path, tmp_path: Path) -> None:
    result = striate("remove-layers", tiny_llava_dir, f"--layers={layers}", "--out", tmp_path / "small")
    assert result.exit_code == 1
    assert text in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "small").exists()


def _align(folder: Path) -> None:
    """Stage-1 alignment from the command line: region none moves the projector only."""
    config = {
        "model": {"path": str(folder / "new")},
        "data": {"train": [str(folder / "pack")]},
        "select": {"region": "none"},
        "train": {"method": "full", "max_steps": 2, "batch_size": 2, "max_length": 128},
        "machine": {"micro_batch": 2, "device": "cpu"},
    }
    (folder / "run.yaml").write_text(json.dumps(config))
    for verb in ("select", "train"):
        result = striate(verb, folder / "run.yaml", "--out", folder / "run")
        assert result.exit_code == 0, result.output
    before = load_model(folder / "new").model.state_dict()
    after = load_model(folder / "run" / "checkpoint").model.state_dict()
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved
    assert all("multi_modal_projector" in name for name in moved)


def test_compose_writes_a_model_that_aligns(tiny_llava_dir: Path, pack_dir: Path, tmp_path: Path) -> None:
    assert pack_dir == tmp_path / "pack"
    loaded = load_model(tiny_llava_dir)
    loaded.model.model.vision_tower.save_pretrained(tmp_path / "clip")
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(loaded.model.config.text_config).save_pretrained(tmp_path / "llama")
    loaded.processor.tokenizer.save_pretrained(tmp_path / "llama")
    result = striate(
        "compose", "--vision", tmp_path / "clip", "--llm", tmp_path / "llama", "--out", tmp_path / "new", "--seed", "3"
    )
    assert result.exit_code == 0, result.output
    assert "4 image tokens a picture; the projector is random" in result.output
    assert "region none" in result.output
    assert load_model(tmp_path / "new").model.config.image_seq_length == 4
    _align(tmp_path)
    again = striate("compose", "--vision", tmp_path / "clip", "--llm", tmp_path / "llama", "--out", tmp_path / "new")
    assert again.exit_code == 1
    assert "exists already" in again.output


def test_import_names_what_is_missing(tiny_llava_dir: Path, tmp_path: Path) -> None:
    result = striate("import", tiny_llava_dir, "--out", tmp_path / "new")
    assert result.exit_code == 1
    assert "is no original checkpoint" in result.output
    assert "use it as it is" in result.output
    original = tmp_path / "original"
    original.mkdir()
    (original / "config.json").write_text(json.dumps({"model_type": "llava", "mm_vision_tower": "x", "vocab_size": 9}))
    result = striate("import", original, "--vision", tmp_path, "--out", tmp_path / "new")
    assert result.exit_code == 1
    assert "a projector of type None" in result.output
    inspected = striate("inspect", original)
    assert inspected.exit_code == 1
    assert f"striate import {original} --vision" in inspected.output.replace("\n", "")
