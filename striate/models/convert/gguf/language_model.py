"""Writes an LVLM's language model, pruned or not, as a GGUF file for llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from striate.errors import ArtifactError, ModelError
from striate.models.convert.gguf.gguf_tokenizer import write_vocabulary
from striate.models.convert.gguf.gguf_writer import FORMATS, Q4_K, Q6_K, Entry, entry, values_of, write_gguf
from striate.models.convert.gguf.picture_template import template_of
from striate.models.convert.gguf.text_architectures import (
    TextArchitecture,
    rope_factors,
    rope_settings,
    text_architecture,
)
from striate.models.io.adapter_folder import is_adapter
from striate.models.io.load import load_model, read_config
from striate.models.structure.anatomy import unwrap
from striate.models.structure.decoder_stack import find_decoder
from striate.storage.atomic import cannot_write


def export_language_model(model: str | Path, out: str | Path, *, dtype: str = "float16") -> Path:
    """Return `out`, a GGUF file of the language part of the LVLM at `model`; vision encoder and projector stay out.

    Args:
        model: a Hugging Face LVLM folder or hub id, or an adapter folder, which is merged.
        out: the file to write; must not exist.
        dtype: `float32`, `float16`, `bfloat16`, `q8_0` or `q4_k` of the matrices; norms and biases are float32.

    Raises:
        ModelError: a language model, positions or tokenizer that this does not know, or what `load_model` raises.
        ArtifactError: `out` exists or can't be written.
    """
    target = Path(out)
    if dtype not in FORMATS:
        raise ModelError(f"unknown dtype {dtype!r}", ", ".join(FORMATS), "float16 is a good choice")
    if target.exists():
        raise ArtifactError(f"{target} exists already", "a new file", "remove it, or choose another name")
    loaded = load_model(model, device="cpu", dtype=stored_dtype(model), merge=True)
    try:
        write_language_model(loaded.model, loaded.processor, target, dtype)
    except OSError as error:
        raise cannot_write(target, error) from error
    return target


def stored_dtype(model: str | Path) -> str:
    """Return the dtype that loses nothing: that of the folder, and float32 to merge an adapter."""
    if is_adapter(Path(model)):
        return "float32"
    stored = str(read_config(model).dtype).removeprefix("torch.")
    return stored if stored in ("float16", "bfloat16") else "float32"


def write_language_model(
    model: Any, processor: Any, target: Path, dtype: str = "float16", template: str | None = None
) -> None:
    """Write the language part of `model` to `target`, tensor by tensor, under a temporary name until it is whole.

    `template` is the chat template that the file holds; None for that of the processor.

    Raises:
        ModelError: a language model, positions or tokenizer that this does not know.
        OSError: the file can't be written.
    """
    core = unwrap(model)
    config = core.config.get_text_config(decoder=True)
    architecture = text_architecture(config)
    entries = list(language_entries(model, dtype))

    def facts(writer: gguf.GGUFWriter) -> None:
        _write_sizes(writer, config, FORMATS[dtype][1])
        architecture.facts(writer, config, core)
        write_vocabulary(writer, processor, config.vocab_size)
        if ends := _other_ends(core, processor):
            writer.add_eot_token_id(ends[0])
        if chat := template or template_of(processor):
            writer.add_chat_template(chat)

    write_gguf(target, gguf.MODEL_ARCH_NAMES[architecture.kind], facts, entries)


def language_entries(model: Any, dtype: str) -> Iterator[Entry]:
    """Yield every tensor of the language part by llama.cpp's name; a tied LM head is not written twice.

    Raises:
        ModelError: a tensor that llama.cpp has no place for, or a language model that this does not know.
    """
    core = unwrap(model)
    config = core.config.get_text_config(decoder=True)
    architecture, decoder = text_architecture(config), find_decoder(core)
    names = gguf.get_tensor_name_map(architecture.kind, config.num_hidden_layers)
    tensors = {f"model.{name}": tensor for name, tensor in decoder.named_parameters()}
    head = core.get_output_embeddings()
    if head is not None and head.weight is not core.get_input_embeddings().weight:
        tensors["lm_head.weight"] = head.weight
    for name, tensor in tensors.items():
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise ModelError(f"llama.cpp has no place for {name}", "a plain Llama or Qwen2", "see docs/serving.md")
        stored = entry(known, tensor, _kind(known, dtype, config, tied="lm_head.weight" not in tensors))
        yield Entry(known, stored.shape, stored.kind, partial(_values, known, tensor, config, architecture))
    factors = rope_factors(decoder, config)
    if factors is not None:
        yield entry("rope_freqs.weight", factors, FORMATS["float32"][0])


def _kind(name: str, dtype: str, config: Any, *, tied: bool) -> gguf.GGMLQuantizationType:
    """Return the number format of a matrix: in q4_k, some of the most sensitive ones in 6 bits, as in Q4_K_M."""
    kind = FORMATS[dtype][0]
    if kind != Q4_K:
        return kind
    if name == ("token_embd.weight" if tied else "output.weight"):
        return Q6_K
    depth = config.num_hidden_layers
    layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
    more = layer < depth // 8 or layer >= 7 * depth // 8 or (layer - depth // 8) % 3 == 2
    return Q6_K if more and name.endswith(("attn_v.weight", "ffn_down.weight")) else Q4_K


def _write_sizes(writer: gguf.GGUFWriter, config: Any, file_type: gguf.LlamaFileType) -> None:
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(file_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if size * heads != config.hidden_size:
        writer.add_key_length(size)
        writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    if (rope := rope_settings(config).get("")) is not None:
        writer.add_rope_freq_base(rope.get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _other_ends(core: Any, processor: Any) -> list[int]:
    """Return the tokens besides the tokenizer's that end an answer, such as Gemma's end of a turn."""
    ends = getattr(getattr(core, "generation_config", None), "eos_token_id", None)
    return [
        end
        for end in (ends if isinstance(ends, list) else [ends])
        if end not in (None, processor.tokenizer.eos_token_id)
    ]


def _values(name: str, tensor: torch.Tensor, config: Any, architecture: TextArchitecture) -> np.ndarray:
    """Return the tensor in float32, rows of queries and keys in llama.cpp's order.

    Hugging Face rotates value i of a head with value i + size / 2, llama.cpp's Llama value 2 i with 2 i + 1.
    """
    values = values_of(architecture.change(name, tensor, config))
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
    if not (architecture.pairs and heads):
        return values
    half = values.shape[0] // heads // 2
    return np.ascontiguousarray(values.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(values.shape))
