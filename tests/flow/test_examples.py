"""Every example is run as a person runs it, on the tiny LLaVA: what trains is the region, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from striate.models.convert.merge_checkpoint import merge_checkpoint
from striate.models.io.load import load_model

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDS_TRL = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs trl (the extra `dev`)")


@pytest.fixture
def run(tiny_llava_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs an example for two steps on layers 0 and 2, and returns its folder."""

    def example(name: str, data: Path, *more: str) -> Path:
        out = tmp_path / "out"
        words = [str(tiny_llava_dir), str(data), str(out), "--region", "ids:0,2", "--steps", "2", *more]
        monkeypatch.setattr(sys, "argv", [name, *words])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return out

    return example


def check_adapter(folder: Path, projector: bool) -> None:
    """Check that an adapter has moved in both layers of the region, and is nowhere else but in the projector."""
    tensors = load_file(folder / "adapter_model.safetensors")
    factors = [name for name in tensors if ".lora_B." in name]
    assert {name.split(".layers.")[1].split(".")[0] for name in factors} == {"0", "2"}
    assert not any("vision" in name for name in tensors)
    assert any(tensors[name].any() for name in factors if ".layers.0." in name)
    assert any(tensors[name].any() for name in factors if ".layers.2." in name)
    assert any("multi_modal_projector" in name for name in tensors) is projector


@NEEDS_TRL
def test_trl_sft(run: Any, pack_dir: Path, tmp_path: Path) -> None:
    out = run("trl_sft.py", pack_dir)
    check_adapter(out, projector=True)
    done = merge_checkpoint(out, tmp_path / "merged")
    assert done.modules > 14
    assert load_model(tmp_path / "merged", device="cpu").processor.chat_template


@NEEDS_TRL
def test_trl_dpo(run: Any, pack_dir: Path) -> None:
    pairs = [
        {"image": f"images/square_0{place}.png", "question": "What is it?", "chosen": "a square", "rejected": "a dog"}
        for place in range(4)
    ]
    (pack_dir / "pairs.json").write_text(json.dumps(pairs))
    check_adapter(run("trl_dpo.py", pack_dir / "pairs.json"), projector=False)


@NEEDS_TRL
def test_trl_grpo(run: Any, pack_dir: Path) -> None:
    torch.manual_seed(0)
    check_adapter(run("trl_grpo.py", pack_dir, "--tokens", "8"), projector=False)


@NEEDS_TRL
def test_trl_on_clips(run: Any, pack_dir: Path) -> None:
    frames = [Image.open(file) for file in sorted((pack_dir / "images").iterdir())[:6]]
    frames[0].save(pack_dir / "clip.gif", save_all=True, append_images=frames[1:])
    clips = [
        {"clip": "clip.gif", "question": "What changes?", "answer": "its colour"},
        {"clip": "images", "question": "What changes?", "answer": "its place"},
    ]
    (pack_dir / "clips.json").write_text(json.dumps(clips))
    check_adapter(run("trl_video.py", pack_dir / "clips.json", "--frames", "3"), projector=True)


def test_hf_trainer(run: Any, pack_dir: Path, tiny_llava_dir: Path) -> None:
    after = load_file(run("hf_trainer.py", pack_dir) / "model.safetensors")
    before = load_file(tiny_llava_dir / "model.safetensors")
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    places = {
        "projector" if "multi_modal_projector" in name else name.partition(".self_attn")[0].partition(".mlp")[0]
        for name in moved
        if "layernorm" not in name
    }
    stack = next(name for name in before if "language_model" in name and ".layers." in name).partition(".layers.")[0]
    assert places == {"projector", f"{stack}.layers.0", f"{stack}.layers.2"}


def test_python_api(
    pack_dir: Path, tiny_llava_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    words = [str(tiny_llava_dir), str(pack_dir), str(tmp_path / "out"), "--region", "ids:0,2", "--remove", "1"]
    monkeypatch.setattr(sys, "argv", ["python_api.py", *words])
    runpy.run_path(str(EXAMPLES / "python_api.py"), run_name="__main__")
    assert "layers (0, 2) of 4" in capsys.readouterr().out
    assert load_model(tmp_path / "out", device="cpu").model.config.text_config.num_hidden_layers == 3
    monkeypatch.setattr(sys, "argv", ["python_api.py", *words[:4], "unifrm:2"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(EXAMPLES / "python_api.py"), run_name="__main__")
    assert "did you mean 'uniform'?" in capsys.readouterr().err


def test_the_notebook(pack_dir: Path, tiny_llava_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_llava_dir, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "analyse_select_prune.ipynb").read_text())["cells"]
    shown: list[Any] = []
    names: dict[str, Any] = {}
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        *lines, last = "".join(cell["source"]).replace("llava-hf/llava-1.5-7b-hf", "model").rsplit("\n", 1)
        exec("\n".join(lines), names)
        try:
            shown.append(eval(last, names))
        except SyntaxError:
            exec(last, names)
    drawn = [value._repr_html_() for value in shown if hasattr(value, "_repr_html_")]
    assert len(drawn) == 3
    assert all(html.startswith("<iframe") and "&lt;svg" in html for html in drawn)
    assert load_model(tmp_path / "smaller").model.config.text_config.num_hidden_layers == 3
