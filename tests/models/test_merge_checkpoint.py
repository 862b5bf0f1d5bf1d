"""A merged checkpoint is the adapter on its base: of many families and kinds of adapter, streamed or not."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from family_inputs import NotBuiltError
from family_zoo import build, model_types
from peft import LoraConfig, PeftModel
from shards_kit import config_of, tensors_of
from transformers import AutoModelForImageTextToText

from striate.artifacts import Region
from striate.errors import ModelError, StriateError
from striate.models.convert.merge_checkpoint import MergedCheckpoint, write_weights
from striate.models.io.adapters import add_adapter
from striate.models.structure.anatomy import find_anatomy
from striate.models.structure.meta_model import blueprint
from striate.models.trainable.apply import lora_config

Batch = dict[str, Any]
Built = tuple[Any, Batch]

ROUNDING = 2.0**-8
"""The most by which rounding to bfloat16 changes a number, as a share of it."""


def logits_of(model: Any, inputs: Batch) -> torch.Tensor:
    with torch.inference_mode():
        return model(**inputs, use_cache=False).logits


def tuned(model: Any, config: LoraConfig, folder: Path) -> PeftModel:
    """Save `model` to base/ and an adapter of it, away from its start, to adapter/; return the adapter on the model."""
    model.save_pretrained(folder / "base", max_shard_size="60KB")
    wrapped = peft.get_peft_model(model, config)
    config.base_model_name_or_path = str(folder / "base")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    wrapped.save_pretrained(folder / "adapter")
    return wrapped.eval()


def merge(folder: Path, dtype: str = "auto") -> MergedCheckpoint:
    """Merge adapter/ and base/ of `folder` into out/."""
    (folder / "out").mkdir()
    return write_weights(blueprint(str(folder / "base")), folder / "base", folder / "adapter", dtype, folder / "out")


def stock(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def region_of(model: Any) -> Region:
    depth = find_anatomy(model).num_layers
    return Region(layers=(0, 2), num_layers=depth, spec="ids:0,2")


@pytest.mark.parametrize("name", ["gemma3", "idefics3", "internvl", "llava", "mllama", "qwen2_5_vl", "smolvlm"])
def test_merged_answers_as_the_adapter_does(name: str, family_builder: Callable[[str], Built], tmp_path: Path) -> None:
    model, inputs = family_builder(name)
    wrapped = tuned(model, lora_config(model, region_of(model), r=4, alpha=8, vision="lora"), tmp_path)
    done = merge(tmp_path, "float32")
    assert not done.in_memory
    assert done.modules > 8
    exact = logits_of(wrapped, inputs)
    assert torch.allclose(logits_of(stock(tmp_path / "out"), inputs), exact, atol=1e-4)


KINDS: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True, "projector": "lora"},
    "patterns": {"rank_pattern": {"q_proj": 2, "layers.0.mlp.up_proj": 3}, "alpha_pattern": {"down_proj": 32}},
    "projector lora": {"projector": "lora"},
    "vision whole": {"vision": "full", "projector": "full"},
    "dora on all": {"use_dora": True, "use_rslora": True, "vision": "lora", "modules": "attention"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_lora_is_merged_by_its_own_formula(
    kind: str, family_builder: Callable[[str], Built], tmp_path: Path
) -> None:
    model, inputs = family_builder("qwen2_5_vl" if kind == "patterns" else "llava")
    wrapped = tuned(model, lora_config(model, region_of(model), r=4, alpha=8, **KINDS[kind]), tmp_path)
    before = logits_of(stock(tmp_path / "base"), inputs)
    exact = logits_of(wrapped, inputs)
    merge(tmp_path, "float32")
    assert torch.allclose(logits_of(stock(tmp_path / "out"), inputs), exact, atol=1e-4)
    assert not torch.allclose(before, exact, atol=1e-2)


def _plain(model: Any, **settings: Any) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, **settings)


FOREIGN: dict[str, Callable[[Any], Any]] = {
    "trained biases": lambda model: _plain(model, target_modules=["q_proj"], bias="all"),
    "a bias of its own": lambda model: _plain(model, target_modules=["fc1"], lora_bias=True),
    "embeddings": lambda model: _plain(model, target_modules=["embed_tokens", "q_proj"]),
    "the patches": lambda model: _plain(model, target_modules=["patch_embedding"]),
    "the head": lambda model: _plain(model, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"]),
    "single tokens": lambda model: _plain(model, target_modules=["v_proj"], trainable_token_indices=[5, 9]),
    "ia3": lambda model: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": lambda model: peft.LoHaConfig(r=4, alpha=8, target_modules=["q_proj"]),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_adapters_of_other_trainers_are_merged(
    kind: str, family_builder: Callable[[str], Built], tmp_path: Path
) -> None:
    model, inputs = family_builder("llava")
    wrapped = tuned(model, FOREIGN[kind](model), tmp_path)
    exact = logits_of(wrapped, inputs)
    assert not merge(tmp_path, "float32").in_memory
    assert torch.allclose(logits_of(stock(tmp_path / "out"), inputs), exact, atol=1e-4)


def test_sixteen_bits_are_the_exact_weights_rounded_once(
    family_builder: Callable[[str], Built], tmp_path: Path
) -> None:
    model, inputs = family_builder("llava")
    config = lora_config(model, region_of(model), r=4, alpha=8, use_dora=True)
    wrapped = tuned(model.bfloat16(), config, tmp_path).float()
    done = merge(tmp_path)
    assert done.dtype == "bfloat16"
    exact = copy.deepcopy(wrapped).merge_and_unload()
    out = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    assert {parameter.dtype for parameter in out.parameters()} == {torch.bfloat16}
    given = dict(out.named_parameters())
    for name, parameter in exact.named_parameters():
        assert torch.allclose(given[name].float(), parameter, rtol=ROUNDING, atol=1e-7), name
    reference, rounded = logits_of(wrapped, inputs), logits_of(out.float(), inputs)
    # The same rounding of the exact model's own weights is the measure of what it may cost.
    allowed = (logits_of(copy.deepcopy(exact).bfloat16().float(), inputs) - reference).abs().max()
    assert (rounded - reference).abs().max() <= 1.5 * allowed


@pytest.mark.parametrize(
    ("kind", "dtype", "expected"),
    [
        (torch.float32, "auto", "BF16"),
        (torch.float16, "auto", "F16"),
        (torch.bfloat16, "float16", "F16"),
        (torch.bfloat16, "float32", "F32"),
    ],
)
def test_the_format_is_that_of_the_base_or_as_asked(
    kind: torch.dtype, dtype: str, expected: str, family_builder: Callable[[str], Built], tmp_path: Path
) -> None:
    model, _ = family_builder("llava")
    tuned(model.to(kind), lora_config(model, region_of(model), r=4, alpha=8), tmp_path)
    done = merge(tmp_path, dtype)
    names = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    assert {tensor.dtype for tensor in tensors_of(tmp_path / "out").values()} == {names[expected]}
    config = config_of(tmp_path / "out")
    assert {config["dtype"], config["text_config"]["dtype"]} == {done.dtype}


def test_a_number_beyond_float16_is_refused(family_builder: Callable[[str], Built], tmp_path: Path) -> None:
    model, _ = family_builder("llava")
    with torch.no_grad():
        model.lm_head.weight[0, 0] = 1e6
    tuned(model, lora_config(model, region_of(model), r=4), tmp_path)
    with pytest.raises(ModelError, match=r"(?s)lm_head.weight holds 1e\+06.*use --dtype bfloat16"):
        merge(tmp_path, "float16")


def test_experts_that_are_joined_on_loading_stay_as_they_are(tmp_path: Path) -> None:
    model, inputs = build("qwen3_vl_moe")
    wrapped = tuned(model, lora_config(model, region_of(model), r=4, alpha=8, modules="attention"), tmp_path)
    exact = logits_of(wrapped, inputs)
    assert not merge(tmp_path, "float32").in_memory
    assert sorted(tensors_of(tmp_path / "out")) == sorted(tensors_of(tmp_path / "base"))
    assert torch.allclose(logits_of(stock(tmp_path / "out"), inputs), exact, atol=1e-4)


@pytest.mark.parametrize("kind", ["experts", "pissa"])
def test_what_needs_all_weights_is_merged_in_memory_and_says_so(
    kind: str, family_builder: Callable[[str], Built], tmp_path: Path
) -> None:
    model, inputs = build("qwen3_vl_moe") if kind == "experts" else family_builder("llava")
    experts = [name for name, _ in model.named_parameters() if name.endswith("0.mlp.experts.gate_up_proj")]
    chosen = {"target_parameters": experts} if experts else {"init_lora_weights": "pissa"}
    wrapped = tuned(model, _plain(model, target_modules=["q_proj"], **chosen), tmp_path)
    exact = logits_of(wrapped, inputs)
    assert merge(tmp_path, "float32").in_memory
    assert torch.allclose(logits_of(stock(tmp_path / "out"), inputs), exact, atol=1e-4)


def test_embeddings_trained_apart_are_no_longer_tied(family_builder: Callable[[str], Built], tmp_path: Path) -> None:
    model, inputs = family_builder("smolvlm")
    assert model.lm_head.weight is model.get_input_embeddings().weight
    wrapped = tuned(model, _plain(model, target_modules=["q_proj"], modules_to_save=["lm_head"]), tmp_path)
    exact = logits_of(wrapped, inputs)
    merge(tmp_path, "float32")
    out = stock(tmp_path / "out")
    assert not torch.equal(out.lm_head.weight, out.get_input_embeddings().weight)
    assert torch.allclose(logits_of(out, inputs), exact, atol=1e-4)


def _adaptable(name: str) -> tuple[Any, Batch, LoraConfig] | None:
    """Return a model, inputs and an adapter's config; None of what does not build or takes no LoRA.

    Which these are, and why, is told by test_family_matrix.py.
    """
    try:
        model, inputs = build(name)
        return model, inputs, lora_config(model, region_of(model), r=4, alpha=8)
    except (StriateError, NotBuiltError, RuntimeError, ValueError):
        return None


@pytest.mark.families
def test_every_family_that_takes_an_adapter_is_merged(tmp_path: Path) -> None:
    merged, wrong, whole = [], [], set()
    for name in model_types():
        if (found := _adaptable(name)) is None:
            continue
        model, inputs, config = found
        exact = logits_of(tuned(model, config, tmp_path / name), inputs)
        whole |= {name} if merge(tmp_path / name, "float32").in_memory else set()
        logits = logits_of(stock(tmp_path / name / "out"), inputs)
        close = torch.allclose(logits, exact, atol=1e-3 * max(1, exact.abs().max().item()))
        (merged if close else wrong).append(name)
        shutil.rmtree(tmp_path / name)
    assert wrong == []
    assert len(merged) >= 85
    # Their stored matrices are halves or thirds of those that the adapter is on.
    assert whole <= {"minimax_m3_vl", "molmo2"}


def test_an_adapter_on_a_tied_weight_is_refused(family_builder: Callable[[str], Built], tmp_path: Path) -> None:
    model, _ = family_builder("smolvlm")
    tuned(model, _plain(model, target_modules=["lm_head"]), tmp_path)
    with pytest.raises(ModelError, match=r"(?s)ties .*it would change both.*serve it as an adapter"):
        merge(tmp_path)


def test_an_adapter_of_no_numbers_is_refused(family_builder: Callable[[str], Built], tmp_path: Path) -> None:
    model, _ = family_builder("llava")
    wrapped = tuned(model, lora_config(model, region_of(model), r=4), tmp_path)
    with torch.no_grad():
        next(p for n, p in wrapped.named_parameters() if "lora_B" in n).fill_(float("nan"))
    wrapped.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"can't be added to model.language_model.layers.0"):
        merge(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind", "adapted"),
    [
        ("lm_head", torch.bfloat16, False),
        ("lm_head", torch.float32, False),
        ("language_model.layers.0.self_attn.q_proj", torch.bfloat16, True),
        ("language_model.layers.1.self_attn.q_proj", torch.float32, True),
    ],
)
def test_a_model_of_no_numbers_is_refused_by_name(
    name: str, kind: torch.dtype, adapted: bool, family_builder: Callable[[str], Built], tmp_path: Path
) -> None:
    """Whole or under an adapter, in a tensor that the adapter changes or not, copied or made anew."""
    model, _ = family_builder("llava")
    layer = next(module for own, module in model.named_modules() if own.endswith(name))
    with torch.no_grad():
        layer.weight[1, 1] = float("inf")
    tuned(model.to(kind), lora_config(model, region_of(model), r=4), tmp_path)
    (tmp_path / "out").mkdir()
    base, adapter = tmp_path / "base", tmp_path / "adapter" if adapted else None
    with pytest.raises(ModelError) as error:
        write_weights(blueprint(str(base)), base, adapter, "auto", tmp_path / "out")
    assert str(error.value).startswith(f"the weights in {base}")
    assert f"{name.removeprefix('language_model.')}.weight\n" in str(error.value)


def test_a_whole_module_of_no_numbers_is_the_adapters(family_builder: Callable[[str], Built], tmp_path: Path) -> None:
    model, _ = family_builder("llava")
    wrapped = tuned(model, lora_config(model, region_of(model), r=4, projector="full"), tmp_path)
    with torch.no_grad():
        next(p for n, p in wrapped.named_parameters() if "modules_to_save" in n).fill_(float("nan"))
    wrapped.save_pretrained(tmp_path / "adapter")
    said = rf"the weights in {tmp_path / 'adapter'} hold values .* for example in model.multi_modal_projector"
    with pytest.raises(ModelError, match=said):
        merge(tmp_path)
    with pytest.raises(ModelError, match=rf"the weights in {tmp_path / 'adapter'} hold values"):
        add_adapter(stock(tmp_path / "base"), tmp_path / "adapter")


def test_a_prompt_is_no_change_of_weights(family_builder: Callable[[str], Built], tmp_path: Path) -> None:
    model, _ = family_builder("llava")
    tuned(model, _plain(model, target_modules=["q_proj"]), tmp_path)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(file.read_text().replace('"LORA"', '"PREFIX_TUNING"'))
    with pytest.raises(ModelError, match="there are no weights to merge it into"):
        merge(tmp_path)
