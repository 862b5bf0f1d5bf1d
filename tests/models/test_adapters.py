"""Adapter folders load to the bit, projector included, or say why not; merged ones save as ordinary models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from striate.artifacts import Region
from striate.errors import ModelError
from striate.models.io.load import Loaded, load_model, load_processor
from striate.models.io.save import save_model
from striate.models.surgery.remove_layers import remove_layers
from striate.models.surgery.roundtrip_check import self_test
from striate.models.trainable.apply import apply_region, lora_config

Batch = dict[str, Any]


REGION = Region(layers=(0, 2), num_layers=4, spec="ids:0,2")


def _logits(model: Any, inputs: Batch) -> torch.Tensor:
    with torch.inference_mode():
        return model(**inputs, use_cache=False).logits


def _edit(path: Path | str, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _refused(path: Path | str, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path, device="cpu", **options)
    return str(caught.value)


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
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(base, lora_config(base, REGION, r=4))
    wrapped.peft_config["default"].base_model_name_or_path = "../base"
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(0.1)
    wrapped.eval()
    save_model(wrapped, tiny_llava.processor, tmp_path / "adapter")
    merged = load_model(tmp_path / "adapter", device="cpu", merge=True)
    # Merging rounds each product once more; what is wrong differs in the first digits.
    assert torch.allclose(_logits(merged.model, question), _logits(wrapped, question), atol=1e-3)
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


def test_an_adapter_whose_base_is_gone(adapter_dir: Path, tiny_llava_dir: Path) -> None:
    shutil.rmtree(tiny_llava_dir)
    text = _refused(adapter_dir)
    assert f"the adapter in {adapter_dir} needs its base model, which can't be used: no model at '/" in text
    assert f"fix base_model_name_or_path in {adapter_dir}/adapter_config.json" in text


def test_an_adapter_that_names_no_base(adapter_dir: Path) -> None:
    _edit(adapter_dir / "adapter_config.json", base_model_name_or_path=None)
    assert "adapter_config.json names no base model" in _refused(adapter_dir)
    (adapter_dir / "adapter_config.json").write_text("{")
    assert "adapter_config.json is not JSON: line 1: the text stops" in _refused(adapter_dir)


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


def test_an_adapters_base_is_read_at_the_revision_it_names(adapter_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from striate.models.io import load as loading

    _edit(adapter_dir / "adapter_config.json", revision="v1.5")
    asked = []
    read = loading._read_plain
    monkeypatch.setattr(loading, "_read_plain", lambda *args, **more: asked.append(args[2]) or read(*args, **more))
    load_model(adapter_dir, device="cpu")
    assert asked == ["v1.5"]
