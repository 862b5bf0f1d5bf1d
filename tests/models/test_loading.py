"""What is saved loads to the bit; what cannot be loaded says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm.auto import tqdm
from transformers import AutoProcessor, LlamaConfig, LlamaForCausalLM, LlavaForConditionalGeneration

from striate.artifacts import Region
from striate.errors import ModelError
from striate.models.io.devices import resolve_device, resolve_dtype
from striate.models.io.load import Loaded, load_model
from striate.models.io.quiet import quietly
from striate.models.io.save import save_model
from striate.models.io.weight_files import check_weights_there

Batch = dict[str, Any]


REGION = Region(layers=(0, 2), num_layers=4, spec="ids:0,2")


def _logits(model: Any, inputs: Batch) -> torch.Tensor:
    with torch.inference_mode():
        return model(**inputs, use_cache=False).logits


def _refused(path: Path | str, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path, device="cpu", **options)
    return str(caught.value)


def test_a_saved_model_loads_to_the_bit_in_eval_mode(tiny_llava: Loaded, question: Batch, tmp_path: Path) -> None:
    save_model(tiny_llava.model.train(), tiny_llava.processor, tmp_path / "saved", REGION)
    loaded = load_model(tmp_path / "saved", device="cpu")
    assert not loaded.model.training
    assert loaded.model.dtype == torch.float32
    assert torch.equal(_logits(loaded.model, question), _logits(tiny_llava.model.eval(), question))
    assert type(loaded.processor) is type(tiny_llava.processor)
    assert not [path for path in tmp_path.iterdir() if path.name != "saved"]
    assert Region.model_validate_json((tmp_path / "saved" / "region.json").read_text()) == REGION


def test_plain_transformers_loads_what_is_saved(tiny_llava: Loaded, question: Batch, tmp_path: Path) -> None:
    save_model(tiny_llava.model, tiny_llava.processor, tmp_path / "saved")
    plain = LlavaForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(_logits(plain, question), _logits(tiny_llava.model, question))
    assert AutoProcessor.from_pretrained(tmp_path / "saved").chat_template == tiny_llava.processor.chat_template


def test_dtype_is_what_was_asked_for_and_rotary_tables_stay_exact(tiny_llava_dir: Path) -> None:
    model = load_model(str(tiny_llava_dir), device="cpu", dtype="bfloat16").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.model.language_model.rotary_emb.inv_freq.dtype == torch.float32


def test_quiet_says_nothing_and_puts_the_log_back(tiny_llava_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(tiny_llava_dir, device="cpu")
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_no_such_folder() -> None:
    assert _refused("/no/such/folder") == (
        "no model at '/no/such/folder': there is no such folder\n"
        "  allowed: a folder with config.json or adapter_config.json, or a hub id such as llava-hf/llava-1.5-7b-hf\n"
        "  next:    check the path; for a hub id, check the network and `hf auth login`"
    )
    for path in ("~/nothing-here-at-all", "./nothing", "runs/one/two", "nothing", Path("no/such/place")):
        assert "there is no such folder" in _refused(path)


def test_a_hub_id_out_of_reach() -> None:
    text = _refused("nobody/nothing-like-this")
    assert text.startswith("no model at 'nobody/nothing-like-this': ")
    assert "for a hub id, check the network" in text


def test_a_file_is_no_model(tiny_llava_dir: Path) -> None:
    file = tiny_llava_dir / "config.json"
    assert _refused(file).startswith(f"{file} is a file\n  allowed: a model folder or a hub id")


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    assert _refused(tmp_path).startswith(f"{tmp_path} has no config.json\n")
    with pytest.raises(ModelError, match=r"holds no model: neither config\.json nor weights"):
        check_weights_there(tmp_path)


@pytest.mark.parametrize("content", ["{", '{"model_type": "no_such_type"}', "[]", "{}"])
def test_a_config_that_cannot_be_used(tiny_llava_dir: Path, content: str) -> None:
    (tiny_llava_dir / "config.json").write_text(content)
    assert _refused(tiny_llava_dir).startswith(f"{tiny_llava_dir}/config.json can't be used: ")


def test_a_text_only_model(tmp_path: Path) -> None:
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)).save_pretrained(tmp_path / "llama")
    assert _refused(tmp_path / "llama") == (
        f"{tmp_path}/llama (LlamaForCausalLM) is a text-only model: it has no vision encoder\n"
        "  allowed: a vision-language model such as LLaVA, Qwen2.5-VL, Gemma 3 or SmolVLM\n"
        "  next:    choose another model; see `striate ls families`"
    )


def test_a_model_that_does_not_answer_in_text(tmp_path: Path) -> None:
    from transformers import CLIPConfig

    CLIPConfig().save_pretrained(tmp_path)
    assert "(clip) is not a vision-language model that answers in text" in _refused(tmp_path)


def test_no_weights(tiny_llava_dir: Path) -> None:
    (tiny_llava_dir / "model.safetensors").unlink()
    assert _refused(tiny_llava_dir).startswith(f"{tiny_llava_dir} has a config.json, but no weights\n")


def test_damaged_weights(tiny_llava_dir: Path) -> None:
    file = tiny_llava_dir / "model.safetensors"
    file.write_bytes(file.read_bytes()[:20000])
    assert _refused(tiny_llava_dir).startswith(f"the weights in {tiny_llava_dir} can't be loaded: ")


@pytest.mark.parametrize(
    ("depth", "text"),
    [
        (5, "lacks 9 tensors (for example model.language_model.layers.4.input_layernorm.weight)"),
        (3, "holds 9 tensors of layers beyond its config (for example model.language_model.layers.3.input"),
    ],
)
def test_a_depth_that_the_weights_do_not_have(tiny_llava_dir: Path, depth: int, text: str) -> None:
    file = tiny_llava_dir / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["num_hidden_layers"] = depth
    file.write_text(json.dumps(config))
    assert text in _refused(tiny_llava_dir)


def test_a_width_that_the_weights_do_not_have(tiny_llava_dir: Path) -> None:
    file = tiny_llava_dir / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["intermediate_size"] = 80
    file.write_text(json.dumps(config))
    assert _refused(tiny_llava_dir).startswith(f"the weights in {tiny_llava_dir} can't be loaded: ")


@pytest.mark.parametrize("pattern", ["processor_config.json", "t*"])
def test_no_processor(tiny_llava_dir: Path, pattern: str) -> None:
    for file in tiny_llava_dir.glob(pattern):
        file.unlink()
    text = _refused(tiny_llava_dir)
    assert text.startswith(f"{tiny_llava_dir} has no processor: ")
    assert "copy them from the model that this one was made from" in text


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cpuu", "cuda:x"):
        with pytest.raises(ModelError) as caught:
            resolve_device(name)
        assert str(caught.value).startswith(f"unknown device {name!r}\n  allowed: auto, cpu, cuda, cuda:N, mps\n")
    with pytest.raises(ModelError, match="device 'meta' is not supported"):
        resolve_device("meta")


def test_cuda_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"device 'cuda' asked for, but torch .* finds no CUDA device here"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ModelError, match="device 'cuda:2' asked for, but there are 2 CUDA devices here"):
        resolve_device("cuda:2")


def test_dtypes() -> None:
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert resolve_dtype("float16", torch.device("cpu")) == torch.float16
    with pytest.raises(ModelError) as caught:
        resolve_dtype("bf16", torch.device("cpu"))
    assert str(caught.value).startswith("unknown dtype 'bf16'\n  allowed: auto, float32, bfloat16, float16\n")


@pytest.mark.parametrize("quiet", [True, False])
def test_bars_of_libraries_are_drawn_by_those_who_want_them(quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with quietly(quiet):
        assert list(tqdm(range(3), desc="Converting tensors")) == [0, 1, 2]
    assert ("Converting tensors" in capsys.readouterr().err) == (not quiet)
    list(tqdm(range(2), desc="afterwards"))
    assert "afterwards" in capsys.readouterr().err
