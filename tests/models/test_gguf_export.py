"""The language part of a pruned LVLM as GGUF: transformers and llama.cpp read it and give the same logits."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from striate.errors import ArtifactError, ModelError
from striate.models.convert.gguf import export_language_model, write_language_model
from striate.models.convert.gguf_tokenizer import _pretokenizer
from striate.models.io.components import load_llm
from striate.models.io.save import save_model
from striate.models.surgery.remove_layers import remove_layers

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

TEXT = "What colour is the square? The square is red, 12 of 3."


@pytest.fixture
def pruned(tiny_llava: Loaded, tmp_path: Path) -> Path:
    """A folder with the tiny LLaVA less its second decoder layer."""
    remove_layers(tiny_llava.model, [1])
    save_model(tiny_llava.model, tiny_llava.processor, tmp_path / "pruned")
    return tmp_path / "pruned"


def logits_of(model: Any, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 2e-2), ("bfloat16", 1e-1)])
def test_transformers_reads_it(tiny_llava: Loaded, pruned: Path, tmp_path: Path, dtype: str, tolerance: float) -> None:
    file = export_language_model(pruned, tmp_path / "language.gguf", dtype=dtype)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
    assert read.config.num_hidden_layers == 3
    ids = tiny_llava.processor.tokenizer(TEXT)["input_ids"]
    np.testing.assert_allclose(logits_of(read, ids), logits_of(tiny_llava.model, ids), atol=tolerance, rtol=tolerance)


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="needs llama-cpp-python")
def test_llama_cpp_runs_it(tiny_llava: Loaded, pruned: Path, tmp_path: Path) -> None:
    from llama_cpp import Llama

    file = export_language_model(pruned, tmp_path / "language.gguf", dtype="float32")
    engine = Llama(str(file), n_ctx=128, logits_all=True, verbose=False, n_threads=1)
    ids = tiny_llava.processor.tokenizer(TEXT)["input_ids"]
    assert engine.tokenize(TEXT.encode(), add_bos=False) == ids
    assert engine.detokenize(ids).decode() == TEXT
    engine.eval(ids)
    # Keys and values are float16 there.
    expected = logits_of(tiny_llava.model, ids)
    np.testing.assert_allclose(engine.scores[: len(ids)], expected, atol=5e-2, rtol=5e-2)
    ours = tiny_llava.model.generate(input_ids=torch.tensor([ids]), max_new_tokens=8, min_new_tokens=8, do_sample=False)
    theirs: list[int] = []
    engine.reset()
    for token in engine.generate(ids, top_k=1, temp=0.0, repeat_penalty=1.0):
        theirs.append(token)
        if len(theirs) == 8:
            break
    assert theirs == ours[0, len(ids) :].tolist()


def sentencepiece() -> Any:
    """Return a tokenizer of Llama 2's kind: characters, bytes to fall back on, a space before the first word."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    model = models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    byte_tokens = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=350, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens], show_progress=False
    )
    tokenizer.train_from_iterator([TEXT, "There are 3 squares here, and the other is not red."] * 3, trainer)
    described = json.loads(tokenizer.to_str())
    # Only the first three are special there; bytes are ordinary tokens.
    described["added_tokens"] = described["added_tokens"][:3]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)), unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="needs llama-cpp-python")
def test_llama_cpp_reads_text_as_sentencepiece_does(tiny_llava: Loaded, tmp_path: Path) -> None:
    from llama_cpp import Llama

    tokenizer = sentencepiece()
    processor = SimpleNamespace(tokenizer=tokenizer, chat_template=None)
    write_language_model(tiny_llava.model, processor, tmp_path / "language.gguf", "float32")
    engine = Llama(str(tmp_path / "language.gguf"), n_ctx=128, verbose=False, n_threads=1)
    for text in (TEXT, "There are 2 other squares", "è red ∂", "the  two"):
        assert engine.tokenize(text.encode(), add_bos=False) == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.assets
@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="needs llama-cpp-python")
def test_llama_cpp_runs_the_builtin_lvlm_pruned(tmp_path: Path) -> None:
    """The real case: SmolLM2 inside the built-in LVLM, four layers fewer, answers the same in llama.cpp."""
    from llama_cpp import Llama

    from striate.demo.places import builtin_model
    from striate.models.io.load import load_model
    from striate.progress import Silent

    loaded = load_model(builtin_model(None, None, Silent()))
    remove_layers(loaded.model, [9, 13, 17, 21])
    write_language_model(loaded.model, loaded.processor, tmp_path / "language.gguf", "float32")
    engine = Llama(str(tmp_path / "language.gguf"), n_ctx=128, logits_all=True, verbose=False, n_threads=1)
    ids = loaded.processor.tokenizer(TEXT)["input_ids"]
    assert engine.tokenize(TEXT.encode(), add_bos=False) == ids
    engine.eval(ids)
    expected = logits_of(loaded.model, ids)
    found = engine.scores[: len(ids)]
    assert float(np.abs(found - expected).max()) < 2e-2 * float(np.abs(expected).max())
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.9


def test_what_the_file_holds(tiny_llava: Loaded, pruned: Path, tmp_path: Path) -> None:
    file = export_language_model(pruned, tmp_path / "language.gguf")
    reader = gguf.GGUFReader(file)
    names = {tensor.name for tensor in reader.tensors}
    assert {"token_embd.weight", "output.weight", "output_norm.weight", "blk.2.ffn_down.weight"} <= names
    assert not any(name.startswith("blk.3") or "vision" in name or "mm" in name for name in names)
    norms = [tensor for tensor in reader.tensors if "norm" in tensor.name]
    assert {tensor.tensor_type for tensor in norms} == {gguf.GGMLQuantizationType.F32}
    fields = reader.fields
    assert fields["llama.block_count"].contents() == 3
    assert len(fields["tokenizer.ggml.tokens"].contents()) == len(tiny_llava.processor.tokenizer)
    assert "<|im_start|>" in fields["tokenizer.chat_template"].contents()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["language.gguf", "pruned"]


@pytest.mark.parametrize(("name", "value"), [("block_count", 10**9), ("block_count", 4), ("vocab_size", 2**31 - 1)])
def test_sizes_that_no_tensor_has_are_refused_before_anything_is_built(
    pruned: Path, tmp_path: Path, name: str, value: int
) -> None:
    file = export_language_model(pruned, tmp_path / "language.gguf", dtype="float32")
    field = gguf.GGUFReader(file, "r+").fields[f"llama.{name}"]
    field.parts[field.data[0]][0] = value
    with pytest.raises(ModelError, match=rf"has llama\.{name} {value}, and tensors of 3 layers"):
        load_llm(file)


@pytest.mark.parametrize("damage", [b"", b"GGUF", b"x" * 64])
def test_a_file_that_is_no_gguf_is_named(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "language.gguf").write_bytes(damage)
    with pytest.raises(ModelError, match=r"language\.gguf can't be read"):
        load_llm(tmp_path / "language.gguf")


def test_tied_heads_are_written_once(tiny_llava: Loaded, llava_builder: Any, tmp_path: Path) -> None:
    model = llava_builder(tie_embeddings=True).model
    write_language_model(model, tiny_llava.processor, tmp_path / "tied.gguf", "float32")
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "tied.gguf").tensors}
    assert "output.weight" not in names
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tied.gguf", dtype=torch.float32).eval()
    ids = tiny_llava.processor.tokenizer(TEXT)["input_ids"]
    np.testing.assert_allclose(logits_of(read, ids), logits_of(model, ids), atol=1e-5, rtol=1e-5)


def test_refusals(tiny_llava: Loaded, pruned: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="unknown dtype 'int4'"):
        export_language_model(pruned, tmp_path / "a.gguf", dtype="int4")
    (tmp_path / "there.gguf").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"there\.gguf exists already"):
        export_language_model(pruned, tmp_path / "there.gguf")
    with pytest.raises(ArtifactError, match="nowhere"):
        export_language_model(pruned, tmp_path / "nowhere" / "a.gguf")
    text = tiny_llava.model.config.text_config
    text.rope_parameters = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}
    with pytest.raises(ModelError, match="positions of type 'llama3' are not written"):
        write_language_model(tiny_llava.model, tiny_llava.processor, tmp_path / "b.gguf")
    text.model_type = "gemma3_text"
    with pytest.raises(ModelError, match="is of type 'gemma3_text', which this does not write"):
        write_language_model(tiny_llava.model, tiny_llava.processor, tmp_path / "b.gguf")
    assert not list(tmp_path.glob("*b.gguf*"))


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([{"type": "ByteLevel"}], "gpt-2"),
        ([{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"}], "smollm"),
        (
            [{"type": "Split", "pattern": {"Regex": r"[^\r\n]?\p{L}+|\p{N}{1,3}|\s+"}}, {"type": "ByteLevel"}],
            "llama-bpe",
        ),
        ([{"type": "Split", "pattern": {"Regex": r"[^\r\n]?\p{L}+|\p{N}|\s+"}}, {"type": "ByteLevel"}], "qwen2"),
    ],
)
def test_how_text_is_cut(steps: list[dict[str, Any]], name: str) -> None:
    described = {"model": {"type": "BPE"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}
    assert _pretokenizer(described) == name


def test_other_tokenizers_are_refused() -> None:
    with pytest.raises(ModelError, match="a tokenizer of the kind Unigram"):
        _pretokenizer({"model": {"type": "Unigram"}, "pre_tokenizer": {"type": "Metaspace"}})
