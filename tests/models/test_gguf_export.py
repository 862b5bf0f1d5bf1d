"""The language part of a pruned LVLM as GGUF: transformers and llama.cpp read it and give the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch
from llama_kit import llama_server, needs_server
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from striate.errors import ArtifactError, ModelError
from striate.models.convert.gguf import export_language_model, ggml_library, write_language_model
from striate.models.convert.gguf.gguf_tokenizer import _pretokenizer, write_vocabulary
from striate.models.io.components import load_llm
from striate.models.io.save import save_model
from striate.models.surgery.remove_layers import remove_layers

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
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


@needs_server
@pytest.mark.parametrize("dtype", ["float32", "q8_0", "q4_k"])
def test_llama_cpp_runs_it(tiny_llava: Loaded, pruned: Path, tmp_path: Path, dtype: str) -> None:
    file = export_language_model(pruned, tmp_path / "language.gguf", dtype=dtype)
    ids = tiny_llava.processor.tokenizer(TEXT)["input_ids"]
    with llama_server(file) as server:
        assert server.tokens(TEXT) == ids
        assert server.post("/detokenize", {"tokens": ids})["content"] == TEXT
        theirs = server.answer(TEXT, None, "", 8)
    if dtype == "float32":
        given = torch.tensor([ids])
        # llama.cpp takes both for ends of a turn, and was told to go on.
        ends = tiny_llava.processor.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
        ours = tiny_llava.model.generate(input_ids=given, max_new_tokens=8, suppress_tokens=ends, do_sample=False)
        assert theirs.ids == ours[0, len(ids) :].tolist()
        expected = torch.log_softmax(torch.from_numpy(logits_of(tiny_llava.model, ids)[-1]), -1)
        assert theirs.difference(expected) < 1e-3


@needs_server
@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3", "gemma3_text"])
def test_language_models_of_other_kinds(kind: str, tiny_llava: Loaded, tmp_path: Path) -> None:
    own = {
        "mistral": {"sliding_window": None, "head_dim": 16},
        "qwen3": {"head_dim": 16},
        "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 5, "sliding_window": 7, "rope_parameters": GEMMA_ROPE},
    }
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    text = {name: getattr(tiny_llava.model.config.text_config, name) for name in names}
    text |= {"model_type": kind, "num_hidden_layers": 7, "initializer_range": 0.3, "max_position_embeddings": 256}
    config = LlavaConfig(vision_config=tiny_llava.model.config.vision_config, text_config=text | own.get(kind, {}))
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms and biases as they start would hide mistakes.
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    write_language_model(model, tiny_llava.processor, tmp_path / "language.gguf", "float32")
    ids = tiny_llava.processor.tokenizer(TEXT)["input_ids"]
    with llama_server(tmp_path / "language.gguf") as server:
        theirs = server.answer(TEXT, None, "", 2)
    expected = torch.log_softmax(torch.from_numpy(logits_of(model, ids)[-1]), -1)
    assert theirs.ids[0] == int(expected.argmax())
    assert theirs.difference(expected) < 2e-3


@needs_server
def test_uneven_rope_scaling_is_llama_cpps(tiny_llava: Loaded, llava_builder: Any, tmp_path: Path) -> None:
    """Llama 3.1's positions: long wavelengths are stretched, short ones are not."""
    loaded = llava_builder()
    config = loaded.model.config.text_config
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config.rope_parameters = {**rope, "original_max_position_embeddings": 16}
    decoder = loaded.model.model.language_model
    decoder.rotary_emb = type(decoder.rotary_emb)(config)
    write_language_model(loaded.model, loaded.processor, tmp_path / "language.gguf", "float32")
    ids = tiny_llava.processor.tokenizer(TEXT * 3)["input_ids"]
    with llama_server(tmp_path / "language.gguf") as server:
        theirs = server.answer(TEXT * 3, None, "", 8)
    expected = torch.log_softmax(torch.from_numpy(logits_of(loaded.model, ids)[-1]), -1)
    assert theirs.difference(expected) < 1e-3


def test_four_bits_are_ggmls(tiny_llava: Loaded, tmp_path: Path) -> None:
    """Rows that 256 divides get 4 bits, or 6 where they matter most; others the next larger format, as in llama.cpp."""
    config = {"hidden_size": 256, "intermediate_size": 320, "num_attention_heads": 4, "num_key_value_heads": 4}
    text = type(tiny_llava.model.config.text_config)(**{**tiny_llava.model.config.text_config.to_dict(), **config})
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=tiny_llava.model.config.vision_config, text_config=text)
    ).eval()
    write_language_model(model, tiny_llava.processor, tmp_path / "language.gguf", "q4_k")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "language.gguf").tensors}
    kinds = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    assert kinds["blk.0.attn_q.weight"] == kinds["token_embd.weight"] == "Q4_K"
    assert kinds["output.weight"] == kinds["blk.3.attn_v.weight"] == "Q6_K"
    assert kinds["blk.1.ffn_down.weight"] == "Q5_0"
    assert kinds["blk.3.ffn_down.weight"] == "Q8_0"
    stored = tensors["blk.0.ffn_up.weight"]
    values = gguf.dequantize(stored.data, stored.tensor_type)
    weight = model.model.language_model.layers[0].mlp.up_proj.weight.detach().numpy()
    assert float(np.abs(values - weight).max()) < 0.1 * float(np.abs(weight).max())


def test_four_bits_without_llama_cpp(tiny_llava: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ggml_library, "_places", lambda: iter([tmp_path / "nowhere.so"]))
    ggml_library._library.cache_clear()
    text = {**tiny_llava.model.config.text_config.to_dict(), "hidden_size": 256}
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=tiny_llava.model.config.vision_config, text_config=LlamaConfig(**text))
    )
    try:
        with pytest.raises(ModelError, match=r"no llama\.cpp was found") as refused:
            write_language_model(model, tiny_llava.processor, tmp_path / "language.gguf", "q4_k")
    finally:
        ggml_library._library.cache_clear()
    assert "striate[llama-cpp]" in str(refused.value)
    assert not list(tmp_path.iterdir())


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


@needs_server
def test_llama_cpp_reads_text_as_sentencepiece_does(tiny_llava: Loaded, tmp_path: Path) -> None:
    tokenizer = sentencepiece()
    processor = SimpleNamespace(tokenizer=tokenizer, chat_template=None)
    write_language_model(tiny_llava.model, processor, tmp_path / "language.gguf", "float32")
    with llama_server(tmp_path / "language.gguf") as server:
        for text in (TEXT, "There are 2 other squares", "è red ∂", "the  two"):
            assert server.tokens(text) == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.assets
@needs_server
def test_llama_cpp_runs_the_builtin_lvlm_pruned(tmp_path: Path) -> None:
    """The real case: SmolLM2 inside the built-in LVLM, four layers fewer, answers the same in llama.cpp."""
    from striate.demo.places import builtin_model
    from striate.models.io.load import load_model
    from striate.progress import Silent

    loaded = load_model(builtin_model(None, None, Silent()))
    remove_layers(loaded.model, [9, 13, 17, 21])
    write_language_model(loaded.model, loaded.processor, tmp_path / "language.gguf", "float32")
    ids = loaded.processor.tokenizer(TEXT)["input_ids"]
    ours = loaded.model.generate(input_ids=torch.tensor([ids]), max_new_tokens=16, min_new_tokens=16, do_sample=False)
    with llama_server(tmp_path / "language.gguf") as server:
        assert server.tokens(TEXT) == ids
        assert server.answer(TEXT, None, "", 16).ids == ours[0, len(ids) :].tolist()


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


@pytest.mark.parametrize(("ends", "stored"), [(None, None), (3, None), ([3, 5], 5), (7, 7)])
def test_other_ends_of_an_answer_are_told(tiny_llava: Loaded, tmp_path: Path, ends: Any, stored: int | None) -> None:
    assert tiny_llava.processor.tokenizer.eos_token_id == 3
    tiny_llava.model.generation_config.eos_token_id = ends
    write_language_model(tiny_llava.model, tiny_llava.processor, tmp_path / "language.gguf")
    field = gguf.GGUFReader(tmp_path / "language.gguf").fields.get("tokenizer.ggml.eot_token_id")
    assert (field.contents() if field else None) == stored


def test_refusals(tiny_llava: Loaded, pruned: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="unknown dtype 'int4'"):
        export_language_model(pruned, tmp_path / "a.gguf", dtype="int4")
    (tmp_path / "there.gguf").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"there\.gguf exists already"):
        export_language_model(pruned, tmp_path / "there.gguf")
    with pytest.raises(ArtifactError, match="nowhere"):
        export_language_model(pruned, tmp_path / "nowhere" / "a.gguf")
    text = tiny_llava.model.config.text_config
    text.hidden_act = "gelu"
    with pytest.raises(ModelError, match="the activation of this llama is 'gelu'"):
        write_language_model(tiny_llava.model, tiny_llava.processor, tmp_path / "b.gguf")
    text.hidden_act = "silu"
    text.rope_parameters = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0}
    with pytest.raises(ModelError, match="positions of type 'yarn' are not written"):
        write_language_model(tiny_llava.model, tiny_llava.processor, tmp_path / "b.gguf")
    text.model_type = "phi3"
    with pytest.raises(ModelError, match="is of type 'phi3', which this does not write"):
        write_language_model(tiny_llava.model, tiny_llava.processor, tmp_path / "b.gguf")
    assert not list(tmp_path.glob("*b.gguf*"))


def test_numbers_beyond_float16_are_refused(tiny_llava: Loaded, tmp_path: Path) -> None:
    head = tiny_llava.model.get_output_embeddings().weight
    head.data[0, 0] = 1e5
    with pytest.raises(ModelError, match=r"output\.weight holds 1e\+05, and the most of float16 is 65504"):
        write_language_model(tiny_llava.model, tiny_llava.processor, tmp_path / "a.gguf")
    assert list(tmp_path.iterdir()) == []
    write_language_model(tiny_llava.model, tiny_llava.processor, tmp_path / "a.gguf", "bfloat16")


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


@pytest.mark.parametrize(
    "steps",
    [
        # As Tekken and GPT-4o have it.
        [{"type": "Split", "pattern": {"Regex": r"[\p{Lu}\p{M}]*[\p{Ll}]+|\p{N}|\s+"}}, {"type": "ByteLevel"}],
        [{"type": "Split", "pattern": {"Regex": r"[\p{Lu}\p{M}]*[\p{Ll}]+|\p{N}{1,3}|\s+"}}, {"type": "ByteLevel"}],
        [{"type": "ByteLevel", "use_regex": False}],
    ],
)
def test_text_that_is_cut_in_another_way_is_refused(steps: list[dict[str, Any]]) -> None:
    described = {"model": {"type": "BPE"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}
    with pytest.raises(ModelError, match="is not written as GGUF"):
        _pretokenizer(described)


def test_unigrams_with_bytes_are_no_sentencepiece_bpe(tiny_llava: Loaded) -> None:
    words = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0, byte_fallback=True))
    processor = SimpleNamespace(tokenizer=PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"))
    writer = gguf.GGUFWriter(None, "llama")
    with pytest.raises(ModelError, match="a tokenizer of the kind Unigram"):
        write_vocabulary(writer, processor, 8)
