"""Writes an LVLM's language model, pruned or not, as a GGUF file for llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from striate.errors import ArtifactError, ModelError
from striate.models.convert.gguf_tokenizer import write_vocabulary
from striate.models.io.adapter_folder import is_adapter
from striate.models.io.load import load_model, read_config
from striate.models.structure.anatomy import unwrap
from striate.models.structure.decoder_stack import find_decoder
from striate.storage.atomic import cannot_write

FORMATS = {
    "float32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "float16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bfloat16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}


@dataclass(frozen=True)
class _Architecture:
    """llama.cpp's name for a language model, and whether it rotates neighbouring pairs: then rows are reordered."""

    kind: gguf.MODEL_ARCH
    pairs: bool


_ARCHITECTURES = {
    "llama": _Architecture(gguf.MODEL_ARCH.LLAMA, pairs=True),
    "qwen2": _Architecture(gguf.MODEL_ARCH.QWEN2, pairs=False),
}


def export_language_model(model: str | Path, out: str | Path, *, dtype: str = "float16") -> Path:
    """Return `out`, a GGUF file of the language part of the LVLM at `model`; vision encoder and projector stay out.

    Args:
        model: a Hugging Face LVLM folder or hub id, or an adapter folder, which is merged.
        out: the file to write; must not exist.
        dtype: `float32`, `float16` or `bfloat16` of the matrices; norms and biases are float32.

    Raises:
        ModelError: a language model, positions or tokenizer that this does not know, or what `load_model` raises.
        ArtifactError: `out` exists or can't be written.
    """
    target = Path(out)
    if dtype not in FORMATS:
        raise ModelError(f"unknown dtype {dtype!r}", ", ".join(FORMATS), "float16 is a good choice")
    if target.exists():
        raise ArtifactError(f"{target} exists already", "a new file", "remove it, or choose another name")
    loaded = load_model(model, device="cpu", dtype=_stored_dtype(model), merge=True)
    write_language_model(loaded.model, loaded.processor, target, dtype)
    return target


def _stored_dtype(model: str | Path) -> str:
    """Return the dtype that loses nothing: that of the folder, and float32 to merge an adapter."""
    if is_adapter(Path(model)):
        return "float32"
    stored = str(read_config(model).dtype).removeprefix("torch.")
    return stored if stored in FORMATS else "float32"


def write_language_model(model: Any, processor: Any, target: Path, dtype: str = "float16") -> None:
    """Write the language part of `model` to `target`, tensor by tensor, under a temporary name until it is whole.

    Raises:
        ModelError: a language model, positions or tokenizer that this does not know.
        ArtifactError: the file can't be written.
    """
    core = unwrap(model)
    config = core.config.get_text_config(decoder=True)
    architecture = _architecture(config)
    partial = target.with_name(f".{target.name}.partial")
    try:
        writer = gguf.GGUFWriter(partial, gguf.MODEL_ARCH_NAMES[architecture.kind])
        _write_facts(writer, config, FORMATS[dtype][1])
        write_vocabulary(writer, processor, config.vocab_size)
        named = list(_named_tensors(core, config, architecture))
        kinds = [_kind(tensor, dtype) for _, tensor in named]
        for (name, tensor), kind in zip(named, kinds, strict=True):
            _announce(writer, name, tuple(tensor.shape), kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for (name, tensor), kind in zip(named, kinds, strict=True):
            writer.write_tensor_data(gguf.quantize(_values(name, tensor, config, architecture), kind))
        writer.close()
        partial.rename(target)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        partial.unlink(missing_ok=True)


def _architecture(config: Any) -> _Architecture:
    architecture = _ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise ModelError(
            f"the language model is of type {config.model_type!r}, which this does not write as GGUF",
            ", ".join(_ARCHITECTURES),
            "save it as a plain language model and use llama.cpp's own converter",
        )
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise ModelError(
            f"positions of type {rope['rope_type']!r} are not written as GGUF",
            "rope_type default",
            "save it as a plain language model and use llama.cpp's own converter",
        )
    return architecture


def _write_facts(writer: gguf.GGUFWriter, config: Any, file_type: gguf.LlamaFileType) -> None:
    heads = config.num_attention_heads
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(file_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(getattr(config, "head_dim", None) or config.hidden_size // heads)
    writer.add_rope_freq_base((getattr(config, "rope_parameters", None) or {}).get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _named_tensors(core: Any, config: Any, architecture: _Architecture) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of the language part by llama.cpp's name; a tied LM head is not written twice."""
    names = gguf.get_tensor_name_map(architecture.kind, config.num_hidden_layers)
    tensors = {f"model.{name}": tensor for name, tensor in find_decoder(core).named_parameters()}
    head = core.get_output_embeddings()
    if head is not None and head.weight is not core.get_input_embeddings().weight:
        tensors["lm_head.weight"] = head.weight
    for name, tensor in tensors.items():
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise ModelError(f"llama.cpp has no place for {name}", "a plain Llama or Qwen2", "see docs/portability.md")
        yield known, tensor


def _kind(tensor: torch.Tensor, dtype: str) -> gguf.GGMLQuantizationType:
    """Return the number format of one tensor: vectors are float32."""
    return FORMATS[dtype][0] if tensor.dim() > 1 else gguf.GGMLQuantizationType.F32


def _announce(writer: gguf.GGUFWriter, name: str, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> None:
    """Write name, shape and place of a tensor whose values follow later; bfloat16, unknown to numpy, as bytes."""
    in_bytes = gguf.quant_shape_to_byte_shape(shape, kind)
    if kind == gguf.GGMLQuantizationType.BF16:
        writer.add_tensor_info(name, in_bytes, np.dtype(np.uint8), int(np.prod(in_bytes)), raw_dtype=kind)
    else:
        numbers = np.dtype(np.float32 if kind == gguf.GGMLQuantizationType.F32 else np.float16)
        writer.add_tensor_info(name, shape, numbers, int(np.prod(in_bytes)))


def _values(name: str, tensor: torch.Tensor, config: Any, architecture: _Architecture) -> np.ndarray:
    """Return the tensor in float32, rows of queries and keys in llama.cpp's order.

    Hugging Face rotates value i of a head with value i + size / 2, llama.cpp's Llama value 2 i with 2 i + 1.
    """
    values: np.ndarray = tensor.detach().float().contiguous().numpy()
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
    if not (architecture.pairs and heads):
        return values
    half = values.shape[0] // heads // 2
    return np.ascontiguousarray(values.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(values.shape))
