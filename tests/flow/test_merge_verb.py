"""striate merge: a run's adapter becomes a checkpoint that loads anywhere, in little memory, whole or not at all."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_kit import forked
from typer.testing import CliRunner, Result

from striate.cli import app
from striate.models.convert import merge_checkpoint as merging
from striate.models.convert.merge_checkpoint import merge_checkpoint
from striate.models.io.card import card_code
from striate.models.io.load import load_model
from striate.storage.atomic import is_temporary


def striate(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def run(tuned_run: Path) -> Path:
    return tuned_run


STOCK = """
import sys
sys.modules["striate"] = None
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, inputs, out = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder).eval()
assert model.dtype is torch.bfloat16, model.dtype
assert AutoProcessor.from_pretrained(folder).image_processor
with torch.inference_mode():
    torch.save(model.float()(**torch.load(inputs), use_cache=False).logits, out)
"""


def test_a_runs_adapter_becomes_a_checkpoint_that_loads_without_striate(
    run: Path, tiny_llava: Any, tmp_path: Path
) -> None:
    done = striate("merge", run, "--model", "tuned", "--out", tmp_path / "merged")
    assert done.exit_code == 0, done.output
    assert "modules merged into" in done.output
    assert "in bfloat16, and the processor" in done.output
    # A token of every kind and a picture, without striate's own way to ask.
    ids = tiny_llava.processor.tokenizer("<image>" * 4 + "What colour?", return_tensors="pt")["input_ids"]
    pictures = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures}
    torch.save(inputs, tmp_path / "inputs.pt")
    code = [
        sys.executable,
        "-c",
        STOCK,
        str(tmp_path / "merged"),
        str(tmp_path / "inputs.pt"),
        str(tmp_path / "out.pt"),
    ]
    subprocess.run(code, check=True, capture_output=True, text=True)
    loaded = load_model(run / "checkpoint", device="cpu").model
    with torch.inference_mode():
        exact = loaded(**inputs, use_cache=False).logits
        rounded = loaded.merge_and_unload().bfloat16().float()(**inputs, use_cache=False).logits
    found = torch.load(tmp_path / "out.pt")
    assert (found - exact).abs().max() <= 1.5 * (rounded - exact).abs().max()
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "The adapter is added into the weights, which are bfloat16." in card
    assert "8 of 13 samples, 0.5 epochs" in card
    assert "PeftModel" not in card
    assert (tmp_path / "merged" / "region.json").read_text() == (run / "checkpoint" / "region.json").read_text()


def test_the_last_model_of_a_run_is_taken_where_none_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As with the built-in LVLM, which is larger than a test needs.
    monkeypatch.setattr(card_code, "needs_striate", lambda folder: folder == tmp_path / "merged")
    done = striate("merge", run, "--out", tmp_path / "merged", "--dtype", "float16", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["model"], told["modules"], told["dtype"]) == ("pruned", 0, "float16")
    assert told["notes"] == ["its encoder is striate's own: `import striate` comes before transformers loads it"]
    assert load_model(tmp_path / "merged").model.config.text_config.num_hidden_layers == 3
    assert "1 layer removed" in (tmp_path / "merged" / "README.md").read_text()


def test_the_licence_comes_along_where_the_bases_card_is_gone(run: Path, tmp_path: Path) -> None:
    card = run / "pruned" / "README.md"
    before = card.read_text()
    # The base of this run has no card, as `builtin` is no folder and a hub id may not be in the cache.
    card.write_text(before.replace("library_name:", "license: apache-2.0\nlibrary_name:", 1))
    try:
        done = striate("merge", run, "--out", tmp_path / "merged")
    finally:
        card.write_text(before)
    assert done.exit_code == 0, done.output
    assert "license: apache-2.0" in (tmp_path / "merged" / "README.md").read_text()


@pytest.fixture
def adapter(run: Path, tmp_path: Path) -> Path:
    """A copy of the run's adapter."""
    return Path(shutil.copytree(run / "checkpoint", tmp_path / "adapter"))


def _edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_another_base_may_be_given(adapter: Path, tiny_llava_dir: Path, tmp_path: Path) -> None:
    _edit(adapter / "adapter_config.json", base_model_name_or_path="/nowhere/base")
    refused = striate("merge", adapter, "--out", tmp_path / "merged")
    assert refused.exit_code == 1
    assert "no base model at '/nowhere/base'" in refused.output
    assert "--base names another place" in refused.output.replace("\n", " ")
    done = striate("merge", adapter, "--base", tiny_llava_dir, "--out", tmp_path / "merged")
    assert done.exit_code == 0, done.output


def test_a_rule_for_image_tokens_comes_along(adapter: Path, tmp_path: Path) -> None:
    (adapter / "visual_compute.json").write_text(json.dumps({"layers": [0, 2], "num_layers": 4}))
    done = striate("merge", adapter, "--dtype", "float32", "--out", tmp_path / "merged")
    assert done.exit_code == 0, done.output
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "Image tokens are computed only in layers 0, 2" in card
    assert "striate.load_model('merged')" in card
    ids = torch.tensor([[4, 4, 4, 4, 7, 8, 9]])
    pictures = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures}
    with torch.inference_mode():
        merged, apart = (
            load_model(place, device="cpu").model(**inputs, use_cache=False).logits
            for place in (tmp_path / "merged", adapter)
        )
        (adapter / "visual_compute.json").unlink()
        everywhere = load_model(adapter, device="cpu").model(**inputs, use_cache=False).logits
    assert torch.allclose(merged, apart, atol=1e-4)
    assert not torch.allclose(merged, everywhere, atol=1e-2)


def test_a_quantised_base_is_refused_with_the_reason(adapter: Path, tiny_llava_dir: Path, tmp_path: Path) -> None:
    _edit(tiny_llava_dir / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    done = striate("merge", adapter, "--base", tiny_llava_dir, "--out", tmp_path / "merged")
    assert done.exit_code == 1
    assert "is quantised" in done.output
    assert "as it was before it was quantised: with --base" in done.output.replace("\n", " ")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("{run}", "--model", "healed"), "has no model 'healed'"),
        (("{run}", "--model", "unhealed"), "run the stage that makes unhealed first"),
        (("{run}/run.json",), "is a file"),
        (("{run}/nowhere",), "there is no such folder"),
        (("{run}", "--dtype", "int8"), "Invalid value for '--dtype'"),
        (("{run}", "--base", "{run}/pruned"), "--base gives the base model of an adapter"),
        (("{run}", "--revision", "main"), "--revision 'main' is of a model on the hub"),
    ],
)
def test_what_can_not_be_merged_is_refused(words: tuple[str, ...], text: str, run: Path, tmp_path: Path) -> None:
    done = striate("merge", *(word.format(run=run) for word in words), "--out", tmp_path / "merged")
    assert done.exit_code in (1, 2)
    assert text in done.output
    assert "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_text_model_is_told_from_one_that_lacks_its_processor(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    done = striate("merge", tmp_path / "text", "--out", tmp_path / "merged")
    assert "is a text-only model: it has no vision encoder" in done.output.replace("\n", " ")
    assert not (tmp_path / "merged").exists()


def test_a_folder_that_holds_files_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine.txt").write_text("mine")
    done = striate("merge", run, "--out", tmp_path / "merged")
    assert done.exit_code == 1
    assert "exists already" in done.output
    assert [file.name for file in (tmp_path / "merged").iterdir()] == ["mine.txt"]


@pytest.fixture(scope="module")
def large(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on every layer of a LLaVA of 300 MB in 3 shards."""
    import peft
    from transformers import LlavaForConditionalGeneration

    folder = tmp_path_factory.mktemp("large")
    shutil.copytree(load_base(run), folder / "base")
    config = LlavaForConditionalGeneration.config_class.from_pretrained(folder / "base")
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 48, "head_dim": 128}
    for name, value in sizes.items():
        setattr(config.text_config, name, value)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config).bfloat16()
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(0.01) if tensor.is_floating_point() else tensor.zero_()
    (folder / "base" / "model.safetensors").unlink()
    model.save_pretrained(folder / "base", max_shard_size="100MB")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    wrapped.peft_config["default"].base_model_name_or_path = str(folder / "base")
    wrapped.save_pretrained(folder / "adapter")
    return folder


def load_base(run: Path) -> Path:
    config = json.loads((run / "checkpoint" / "adapter_config.json").read_text())
    return Path(config["base_model_name_or_path"])


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc/self/clear_refs here")
def test_memory_stays_below_a_shard_and_a_fifth(large: Path, run: Path, tmp_path: Path) -> None:
    shards = sorted(file.stat().st_size for file in (large / "base").glob("*.safetensors"))
    assert len(shards) > 2

    def measured() -> None:
        # Once in small: a fork has to touch again what it reads of the libraries.
        merge_checkpoint(run / "checkpoint", tmp_path / "small")
        gc.collect()
        # What is free already would be used without a trace.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        merge_checkpoint(large / "adapter", tmp_path / "out")
        (tmp_path / "bytes").write_text(str(_resident("VmHWM") - before))

    assert forked(measured, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    taken = int((tmp_path / "bytes").read_text())
    print(f"{taken / 1e6:.1f} MB beside shards of {shards[-1] / 1e6:.1f} MB")
    assert 0 < taken < 1.2 * shards[-1]
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == len(shards)


def test_a_killed_merge_leaves_nothing_that_looks_whole(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path, groups: Any) -> None:
        whole(folder, groups)
        os.kill(os.getpid(), signal.SIGKILL)

    whole = merging.write_shards
    with monkeypatch.context() as patch:
        patch.setattr(merging, "write_shards", killed)
        merge = partial(merge_checkpoint, run / "checkpoint", tmp_path / "out")
        assert forked(merge, tmp_path / "log") == -signal.SIGKILL
    (left,) = {*tmp_path.iterdir()} - {tmp_path / "log"}
    assert is_temporary(left)
    assert not (left / "config.json").exists()
    merge_checkpoint(run / "checkpoint", tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()
