"""Parts that can not join into an LVLM: what the errors say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compose_kit import ROWS, SIZES, write_encoder, write_llm, write_tokenizer

from striate.errors import ModelError
from striate.models.convert.compose import compose

# Bad input: each row spoils one part, and names what the error must say.


def _spoil(file: str, **change: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(config | change))

    return spoil


def _delete(*names: str) -> Callable[[Path], None]:
    def delete(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return delete


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])


def _as_llama(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')


def _no_statistics(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text('{"size": 28}')


LLM_ROWS: dict[str, tuple[str, Callable[[Path], None] | dict[str, Any], str]] = {
    "no config": ("llama", _delete("config.json"), "llm holds no LLM"),
    "no weights": ("llama", _delete("model.safetensors"), "can't be used as the LLM"),
    "weights cut short": ("llama", _cut, "can't be used as the LLM"),
    "more layers than weights": ("llama", _spoil("config.json", num_hidden_layers=4), "lacks 9 tensors"),
    "no tokenizer": ("llama", _delete("tokenizer.json", "tokenizer_config.json"), "can't be used as the LLM"),
    "an LM head with bias": ("phi", {}, "the LM head of PhiForCausalLM is not a plain matrix"),
    "logits bounded after the head": ("gemma2", {"head_dim": 8, "final_logit_softcapping": 1.0}, "inside LLaVA's form"),
    "logits scaled after the head": ("granite", {"logits_scaling": 4.0}, "GraniteForCausalLM.* inside LLaVA's form"),
    "too few positions": ("llama", {"max_position_embeddings": 4}, "takes 4 image tokens, .* has 4 positions"),
    "a tokenizer of another model": ("llama", {"vocab_size": 100}, r"has \d+ tokens, and its embeddings 100 rows"),
    "code of its own": (
        "llama",
        _spoil("config.json", model_type="mine", auto_map={"AutoConfig": "mine.Mine"}),
        "can't be used as the LLM: The repository",
    ),
    "an encoder-decoder": ("t5", {"d_model": 32, "d_ff": 32, "num_layers": 1}, "can't be used as the LLM"),
}
VISION_ROWS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "no config": ("clip-alone", _delete("config.json"), "holds no vision encoder"),
    "weights cut short": ("clip-alone", _cut, "can't be used as the vision encoder"),
    "no weights": ("clip-alone", _delete("model.safetensors"), "can't be used as the vision encoder"),
    "more layers than weights": ("clip-alone", _spoil("config.json", num_hidden_layers=5), "lacks 32 tensors"),
    "an unknown type": ("vit", _spoil("config.json", model_type="eyes"), "config.json can't be used"),
    "a language model": ("vit", _as_llama, "is no vision encoder of square pictures"),
    "pictures of unknown statistics": ("siglip", _no_statistics, "holds no image_mean and image_std"),
}


@pytest.mark.parametrize("case", LLM_ROWS)
def test_a_language_model_that_can_not_join_is_refused(case: str, tmp_path: Path) -> None:
    name, spoil, text = LLM_ROWS[case]
    vision = write_encoder(tmp_path / "vision", "siglip")
    if name == "t5":
        from transformers import T5Config, T5ForConditionalGeneration

        T5ForConditionalGeneration(T5Config(vocab_size=ROWS, **spoil)).save_pretrained(tmp_path / "llm")
        write_tokenizer(tmp_path / "llm")
    else:
        write_llm(tmp_path / "llm", name, **(spoil if isinstance(spoil, dict) else {}))
    if not isinstance(spoil, dict):
        spoil(tmp_path / "llm")
    with pytest.raises(ModelError) as caught:
        compose(vision, tmp_path / "llm")
    assert re.search(text, str(caught.value), re.DOTALL), str(caught.value)
    assert caught.value.allowed
    assert caught.value.next_step


@pytest.mark.parametrize("case", VISION_ROWS)
def test_an_encoder_that_can_not_join_is_refused(case: str, tmp_path: Path) -> None:
    name, spoil, text = VISION_ROWS[case]
    llm = write_llm(tmp_path / "llm", "llama")
    spoil(write_encoder(tmp_path / "vision", name))
    with pytest.raises(ModelError) as caught:
        compose(tmp_path / "vision", llm)
    assert re.search(text, str(caught.value), re.DOTALL), str(caught.value)
    assert caught.value.allowed
    assert caught.value.next_step


def test_missing_paths_layers_and_registers_are_refused(tmp_path: Path) -> None:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    vision, llm = write_encoder(tmp_path / "vision", "clip"), write_llm(tmp_path / "llm", "llama")
    with pytest.raises(ModelError, match="no LLM at '/nowhere'"):
        compose(vision, "/nowhere")
    with pytest.raises(ModelError, match="no vision encoder at '/nowhere'"):
        compose("/nowhere", llm)
    with pytest.raises(ModelError, match=r"config.json holds no LLM"):
        compose(vision, llm / "config.json")
    with pytest.raises(ModelError, match="has 4 hidden states, and layer 9 was asked for"):
        compose(vision, llm, layer=9)
    registers = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES, num_register_tokens=4))
    registers.save_pretrained(tmp_path / "registers")
    with pytest.raises(ModelError, match=r"hidden states of shape \(1, 9, 16\) of a picture of 4 patches"):
        compose(tmp_path / "registers", llm)
