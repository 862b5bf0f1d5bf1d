"""Language models that llama.cpp has a graph for: its name for each, what it reads of the config, changed weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gguf
import torch

from striate.errors import ModelError

ELSEWHERE = "save it as a plain language model and use llama.cpp's own converter"
_GEMMA3_27B = 62


@dataclass(frozen=True)
class TextArchitecture:
    """One kind of language model in llama.cpp.

    Attributes:
        kind: llama.cpp's name for it.
        pairs: whether it rotates neighbouring values of a head: then rows of queries and keys are reordered.
        facts: writes what the file says beyond the sizes that all have.
        change: returns a tensor's values as llama.cpp expects them, from its name in the file.
        activations: names of what its MLP computes between matrices.
    """

    kind: gguf.MODEL_ARCH
    pairs: bool = False
    facts: Callable[[gguf.GGUFWriter, Any, Any], None] = lambda writer, config, core: None
    change: Callable[[str, torch.Tensor, Any], torch.Tensor] = lambda name, tensor, config: tensor
    activations: tuple[str, ...] = ("silu", "swish")


def text_architecture(config: Any) -> TextArchitecture:
    """Return llama.cpp's architecture of a language model's config.

    Raises:
        ModelError: it has none, or sees another span or other positions than llama.cpp computes.
    """
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise ModelError(
            f"the language model is of type {config.model_type!r}, which this does not write as GGUF",
            ", ".join(ARCHITECTURES),
            ELSEWHERE,
        )
    act = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if act not in architecture.activations:
        raise ModelError(
            f"the activation of this {config.model_type} is {act!r}, which llama.cpp does not compute in it",
            architecture.activations[0],
            "serve it with transformers or vLLM",
        )
    for kind, rope in rope_settings(config).items():
        if rope.get("rope_type", "default") not in _ROPE_TYPES.get(config.model_type, _ANY_ROPE):
            raise ModelError(
                f"positions of type {rope['rope_type']!r}{f' ({kind})' if kind else ''} are not written as GGUF",
                "rope_type " + " or ".join(_ROPE_TYPES.get(config.model_type, _ANY_ROPE)),
                ELSEWHERE,
            )
    if config.model_type != "gemma3_text" and _slides(config):
        raise ModelError(
            f"some layers of this {config.model_type} see the last {config.sliding_window} tokens alone",
            "layers that see all tokens, as llama.cpp computes them",
            ELSEWHERE,
        )
    return architecture


def rope_settings(config: Any) -> dict[str, dict[str, Any]]:
    """Return the settings of rotary positions: by kind of layer where they differ, else under an empty name."""
    rope = getattr(config, "rope_parameters", None) or {}
    parts = {kind: part for kind, part in rope.items() if isinstance(part, dict)}
    return parts or {"": rope}


def _slides(config: Any) -> bool:
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    used = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", window is not None)
    return bool(window and used and window < config.max_position_embeddings)


def rope_factors(core: Any, config: Any) -> torch.Tensor | None:
    """Return by what llama.cpp divides each rotation frequency, where they are scaled unevenly as in Llama 3.1."""
    rope = rope_settings(config).get("", {})
    if rope.get("rope_type") != "llama3":
        return None
    scaled = core.rotary_emb.inv_freq.double()
    size = 2 * scaled.numel()
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    return (plain / scaled).float()


def _gemma3_facts(writer: gguf.GGUFWriter, config: Any, core: Any) -> None:
    ropes = rope_settings(config)
    whole, local = ropes["full_attention"], ropes["sliding_attention"]
    writer.add_rope_freq_base(whole["rope_theta"])
    writer.add_rope_freq_base_swa(local["rope_theta"])
    if whole.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(whole["factor"])
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _gemma3_change(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Return norms with the 1 that Gemma adds; in those of queries also the scale, which llama.cpp gets from depth."""
    if "norm" not in name:
        return tensor
    weight = tensor.float() + 1
    if not name.endswith("attn_q_norm.weight"):
        return weight
    theirs = config.head_dim
    if config.num_hidden_layers == _GEMMA3_27B:
        theirs = config.hidden_size // config.num_attention_heads
    return weight * math.sqrt(theirs / config.query_pre_attn_scalar)


def _sections(writer: gguf.GGUFWriter, config: Any, core: Any) -> None:
    section = rope_settings(config)[""]["mrope_section"]
    writer.add_rope_dimension_sections([*section, 0])


def _deepstack(writer: gguf.GGUFWriter, config: Any, core: Any) -> None:
    _sections(writer, config, core)
    writer.add_num_deepstack_layers(len(core.config.vision_config.deepstack_visual_indexes))


_ANY_ROPE = ("default",)
_ROPE_TYPES = {"llama": ("default", "llama3"), "gemma3_text": ("default", "linear")}
ARCHITECTURES = {
    "llama": TextArchitecture(gguf.MODEL_ARCH.LLAMA, pairs=True),
    "mistral": TextArchitecture(gguf.MODEL_ARCH.LLAMA, pairs=True),
    "qwen2": TextArchitecture(gguf.MODEL_ARCH.QWEN2),
    "qwen3": TextArchitecture(gguf.MODEL_ARCH.QWEN3),
    "qwen2_vl_text": TextArchitecture(gguf.MODEL_ARCH.QWEN2VL, facts=_sections),
    "qwen2_5_vl_text": TextArchitecture(gguf.MODEL_ARCH.QWEN2VL, facts=_sections),
    "qwen3_vl_text": TextArchitecture(gguf.MODEL_ARCH.QWEN3VL, facts=_deepstack),
    "gemma3_text": TextArchitecture(
        gguf.MODEL_ARCH.GEMMA3, facts=_gemma3_facts, change=_gemma3_change, activations=("gelu_pytorch_tanh",)
    ),
}
"""Type of a text config -> its architecture in llama.cpp."""
