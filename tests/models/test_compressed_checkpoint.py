"""Checkpoints in 8 and 4 bits: plain transformers loads and answers, and values are those of the formula."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from family_zoo import build
from transformers import AutoModelForImageTextToText

from striate.errors import ArtifactError, ModelError
from striate.models.convert import compressed_checkpoint
from striate.models.convert.compressed_checkpoint import SCHEMES, write_compressed
from striate.models.convert.gguf.gguf_folder import export_gguf
from striate.pipeline.exporting import export_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from striate.models.io.load import Loaded

# Half a step of the coarsest value, over the largest of its row or group.
ROUNDING = {"int8": 0.5 / 127, "int4": 0.5 / 7, "fp8": 2**-4}
ASK = """
import sys, torch
from transformers import AutoModelForImageTextToText, AutoProcessor
for folder in sys.argv[1:]:
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    inputs = torch.load(folder + "/inputs.pt")
    with torch.inference_mode():
        answer = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    print(processor.tokenizer.decode(answer[0, -4:]).encode())
assert not any(name.split(".")[0] == "striate" for name in sys.modules)
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, llava_builder: Callable[..., Loaded]) -> dict[str, Path]:
    """A folder of each kind, from the same tiny LLaVA."""
    folder = tmp_path_factory.mktemp("compressed")
    for kind in SCHEMES:
        loaded = llava_builder()
        write_compressed(loaded.model.bfloat16(), loaded.processor, folder / kind, kind)
    return {kind: folder / kind for kind in SCHEMES}


@pytest.mark.parametrize("kind", SCHEMES)
def test_values_are_rounded_to_nearest(
    kind: str, written: dict[str, Path], llava_builder: Callable[..., Loaded]
) -> None:
    read = AutoModelForImageTextToText.from_pretrained(written[kind], dtype=torch.bfloat16).eval()
    model = llava_builder().model.bfloat16()
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        # The first pass unpacks the matrices.
        assert bool(read(input_ids=ids).logits.isfinite().all())
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        layers = (found.model.language_model.layers[1].get_submodule(name) for found in (read, model))
        ours, theirs = (layer.weight.detach().float() for layer in layers)
        group = 32 if kind == "int4" else theirs.shape[-1]
        largest = theirs.unflatten(-1, (-1, group)).abs().amax(-1, keepdim=True)
        # Scales are stored in bfloat16.
        allowed = largest * (ROUNDING[kind] + 2**-8) + 1e-6
        assert bool(((ours - theirs).unflatten(-1, (-1, group)).abs() <= allowed).all())
        assert not torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", SCHEMES)
def test_all_but_the_decoder_keeps_its_bits(
    kind: str, written: dict[str, Path], llava_builder: Callable[..., Loaded]
) -> None:
    read = dict(AutoModelForImageTextToText.from_pretrained(written[kind], dtype=torch.bfloat16).named_parameters())
    for name, tensor in llava_builder().model.bfloat16().named_parameters():
        if "language_model.layers" not in name or "norm" in name:
            assert torch.equal(read[name], tensor), name
    config = json.loads((written[kind] / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert config["ignore"] == ["re:.*vision_tower.*", "re:.*multi_modal_projector.*", "lm_head"]


def test_plain_transformers_answers_in_a_process_of_its_own(written: dict[str, Path], question: dict[str, Any]) -> None:
    inputs = question | {"pixel_values": question["pixel_values"].bfloat16()}
    for folder in written.values():
        torch.save(inputs, folder / "inputs.pt")
    folders = [str(folder) for folder in written.values()]
    done = subprocess.run([sys.executable, "-c", ASK, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3


def test_refusals(tiny_llava: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_llava.model, tiny_llava.processor
    with pytest.raises(ModelError, match="unknown format 'int2'"):
        write_compressed(model, processor, tmp_path / "out", "int2")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(ArtifactError, match="exists already"):
        write_compressed(model, processor, tmp_path / "full", "int8")
    model.model.language_model.layers[2].mlp.down_proj = torch.nn.Linear(40, 32)
    with pytest.raises(ModelError, match=r"layers\.2\.mlp\.down_proj have 40 values, which no group of 128, 64, 32"):
        write_compressed(model, processor, tmp_path / "out", "int4")
    model.config.quantization_config = {}
    with pytest.raises(ModelError, match="the model is quantised already"):
        write_compressed(model, processor, tmp_path / "out", "int8")
    with pytest.raises(ModelError, match="the model is quantised already"):
        export_gguf(model, processor, tmp_path / "out", text_only=True)
    monkeypatch.setattr(compressed_checkpoint, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'striate\[quantize\]'"):
        write_compressed(model, processor, tmp_path / "out", "int8")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_too_little_room_is_said_before(tiny_llava: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from striate.storage import atomic

    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(ArtifactError, match=r"will take 0\.0 GiB, and the disk of .* has 0\.0 GiB free"):
        write_compressed(tiny_llava.model, tiny_llava.processor, tmp_path / "out", "int8")


def test_stacks_of_experts_keep_their_format_and_that_is_said(tiny_llava: Loaded, tmp_path: Path) -> None:
    model, _ = build("qwen3_vl_moe")
    stacks = {name: tensor.bfloat16() for name, tensor in model.named_parameters() if ".mlp.experts." in name}
    model.config.image_token_id = tiny_llava.model.config.image_token_id
    model.save_pretrained(tmp_path / "model")
    tiny_llava.processor.save_pretrained(tmp_path / "model")
    done = export_model(tmp_path / "model", tmp_path / "out", "int8")
    assert done.notes[0].startswith(f"not for vLLM: the {len(stacks)} stacks of experts keep their format")
    assert not any(command.startswith("vllm") for command in done.commands)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    assert all(torch.equal(again.get_parameter(name), tensor) for name, tensor in stacks.items())
