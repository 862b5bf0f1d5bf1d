"""What is saved loads to the bit; what cannot be loaded says why."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlamaConfig, LlamaForCausalLM, LlavaForConditionalGeneration

from striate.artifacts import Region
from striate.errors import ArtifactError, ModelError
from striate.models.layer_surgery import remove_layers, self_test
from striate.models.loading import Loaded, load_model, load_processor, resolve_device, resolve_dtype, save_model
from striate.models.trainability import apply_region, lora_config

Batch = dict[str, Any]


REGION = Region(layers=(0, 2), num_layers=4, spec="ids:0,2")


def _logits(model: Any, inputs: Batch) -> torch.Tensor:
    with torch.inference_mode():
        return model(**inputs, use_cache=False).logits


def _edit(path: Path | str, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def question(tiny_llava: Loaded) -> Batch:
    ids = tiny_llava.processor.tokenizer("<image>" * 4 + "What colour?", return_tensors="pt")["input_ids"]
    pictures = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures}


@pytest.fixture
def tuned(tiny_llava_dir: Path) -> PeftModel:
    """A PEFT model over the saved tiny LLaVA, its adapters and projector away from their start values."""
    loaded = load_model(tiny_llava_dir, device="cpu")
    wrapped = peft.get_peft_model(loaded.model, lora_config(loaded.model, REGION, r=4, alpha=8))
    apply_region(wrapped, REGION, "lora")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return wrapped.eval()


@pytest.fixture
def adapter_dir(tuned: PeftModel, tiny_llava_dir: Path, tmp_path: Path) -> Path:
    tuned.peft_config["default"].base_model_name_or_path = str(tiny_llava_dir)
    save_model(tuned, load_processor(tiny_llava_dir), tmp_path / "adapter", REGION)
    return tmp_path / "adapter"


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


def test_an_adapter_folder_loads_to_the_bit_with_its_projector(
    tuned: PeftModel, adapter_dir: Path, question: Batch
) -> None:
    loaded = load_model(adapter_dir, device="cpu")
    assert isinstance(loaded.model, PeftModel)
    assert not loaded.model.training
    assert torch.equal(_logits(loaded.model, question), _logits(tuned, question))
    trained = tuned.get_base_model().model.multi_modal_projector.modules_to_save["default"].linear_1.weight
    restored = loaded.model.get_base_model().model.multi_modal_projector.modules_to_save["default"].linear_1.weight
    assert torch.equal(trained, restored)


def test_plain_peft_loads_an_adapter_folder(
    tuned: PeftModel, adapter_dir: Path, tiny_llava_dir: Path, question: Batch
) -> None:
    base = LlavaForConditionalGeneration.from_pretrained(tiny_llava_dir)
    plain = PeftModel.from_pretrained(base, adapter_dir).eval()
    assert torch.equal(_logits(plain, question), _logits(tuned, question))


def test_merging_gives_a_plain_model_that_saves_and_reloads(
    tuned: PeftModel, adapter_dir: Path, question: Batch, tmp_path: Path
) -> None:
    loaded = load_model(adapter_dir, device="cpu", merge=True)
    assert type(loaded.model) is LlavaForConditionalGeneration
    assert not [name for name, _ in loaded.model.named_modules() if "lora" in name or "modules_to_save" in name]
    assert torch.allclose(_logits(loaded.model, question), _logits(tuned, question), atol=1e-4)
    remove_layers(loaded.model, [1])
    save_model(loaded.model, loaded.processor, tmp_path / "merged")
    assert self_test(loaded.model, tmp_path / "merged", question, loaded.processor).max_logit_difference == 0


def test_an_adapter_in_bfloat16_answers_outside_autocast(adapter_dir: Path, question: Batch) -> None:
    model = load_model(adapter_dir, device="cpu", dtype="bfloat16").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.isfinite(_logits(model, {**question, "pixel_values": question["pixel_values"].bfloat16()})).all()


def test_a_relative_base_is_found_from_the_adapter_folder(
    adapter_dir: Path, tiny_llava_dir: Path, tuned: PeftModel, question: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    _edit(adapter_dir / "adapter_config.json", base_model_name_or_path=f"../{tiny_llava_dir.name}")
    monkeypatch.chdir("/")
    assert torch.equal(_logits(load_model(adapter_dir, device="cpu").model, question), _logits(tuned, question))


def test_an_adapters_processor_may_come_from_its_base(adapter_dir: Path) -> None:
    for file in [*adapter_dir.glob("processor*"), *adapter_dir.glob("token*"), *adapter_dir.glob("chat*")]:
        file.unlink()
    assert load_model(adapter_dir, device="cpu").processor.chat_template


def test_tied_embeddings_survive_merging_pruning_and_saving(
    tiny_llava: Loaded, question: Batch, tmp_path: Path
) -> None:
    model = _tied(tiny_llava)
    save_model(model, tiny_llava.processor, tmp_path / "base")
    base = load_model(tmp_path / "base", device="cpu").model
    assert base.lm_head.weight is base.model.language_model.embed_tokens.weight
    assert torch.equal(_logits(base, question), _logits(model, question))
    wrapped = peft.get_peft_model(base, lora_config(base, REGION, r=4))
    wrapped.peft_config["default"].base_model_name_or_path = "../base"
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(0.1)
    wrapped.eval()
    save_model(wrapped, tiny_llava.processor, tmp_path / "adapter")
    merged = load_model(tmp_path / "adapter", device="cpu", merge=True)
    assert torch.allclose(_logits(merged.model, question), _logits(wrapped, question), atol=1e-4)
    remove_layers(merged.model, [3])
    save_model(merged.model, merged.processor, tmp_path / "small")
    assert self_test(merged.model, tmp_path / "small", question).max_logit_difference == 0
    reloaded = load_model(tmp_path / "small", device="cpu").model
    assert reloaded.lm_head.weight is reloaded.model.language_model.embed_tokens.weight
    assert "lm_head.weight" not in load_file(tmp_path / "small" / "model.safetensors")


def _tied(loaded: Loaded) -> Any:
    model = loaded.model
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.tie_weights()
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    return model


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


def test_an_adapter_whose_base_is_gone(adapter_dir: Path, tiny_llava_dir: Path) -> None:
    shutil.rmtree(tiny_llava_dir)
    text = _refused(adapter_dir)
    assert (
        f"the adapter in {adapter_dir} needs its base model '{tiny_llava_dir}', which can't be used: no model" in text
    )
    assert f"mend base_model_name_or_path in {adapter_dir}/adapter_config.json" in text


def test_an_adapter_that_names_no_base(adapter_dir: Path) -> None:
    _edit(adapter_dir / "adapter_config.json", base_model_name_or_path=None)
    assert "adapter_config.json names no base model" in _refused(adapter_dir)
    (adapter_dir / "adapter_config.json").write_text("{")
    assert "adapter_config.json can't be read" in _refused(adapter_dir)


def test_an_adapter_of_unknown_kind(adapter_dir: Path) -> None:
    _edit(adapter_dir / "adapter_config.json", peft_type="NO_SUCH_TYPE")
    assert "does not fit its base model" in _refused(adapter_dir)


def test_an_adapter_without_weights_or_with_damaged_ones(adapter_dir: Path) -> None:
    file = adapter_dir / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert "adapter_model.safetensors is damaged" in _refused(adapter_dir)
    file.unlink()
    assert "has no adapter_model.safetensors" in _refused(adapter_dir)


def test_adapter_names_that_match_nothing_are_not_silent(adapter_dir: Path) -> None:
    file = adapter_dir / "adapter_model.safetensors"
    tensors = load_file(file)
    renamed = {name.replace("language_model.layers.2", "language_model.blocks.2"): t for name, t in tensors.items()}
    save_file(renamed, file, metadata={"format": "pt"})
    text = _refused(adapter_dir)
    assert f"holds {len(tensors)} tensors; {len(tensors) - 14} of them match the base model" in text
    assert "language_model.blocks.2" in text


def test_a_forgotten_projector_is_not_silent(adapter_dir: Path) -> None:
    file = adapter_dir / "adapter_model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if "multi_modal_projector" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    assert _refused(adapter_dir).startswith(
        f"the adapter in {adapter_dir} was trained with model.multi_modal_projector, but adapter_model.safetensors does"
        " not hold it\n"
    )


def test_a_half_stored_projector_is_not_silent(adapter_dir: Path) -> None:
    file = adapter_dir / "adapter_model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if "linear_2.bias" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    assert f"the adapter in {adapter_dir} " in _refused(adapter_dir)


def test_an_adapter_over_a_smaller_base_is_refused(adapter_dir: Path, tiny_llava_dir: Path, tmp_path: Path) -> None:
    loaded = load_model(tiny_llava_dir, device="cpu")
    remove_layers(loaded.model, [2, 3])
    save_model(loaded.model, loaded.processor, tmp_path / "small")
    _edit(adapter_dir / "adapter_config.json", base_model_name_or_path="../small")
    text = _refused(adapter_dir)
    assert "the adapter in" in text
    assert "check base_model_name_or_path in" in text


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
