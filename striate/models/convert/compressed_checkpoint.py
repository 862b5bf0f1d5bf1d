"""Writes an LVLM with its decoder's matrices in 8 or 4 bits, as compressed-tensors that transformers and vLLM load."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from striate.errors import ModelError
from striate.models.interventions.model_rule import rule_of
from striate.models.io.quiet import quietly
from striate.models.structure.anatomy import find_anatomy, layer_of
from striate.models.structure.decoder_stack import unwrap
from striate.storage.atomic import check_room, new_folder

GROUPS = (128, 64, 32)
"""Sizes of groups that vLLM's kernels for 4 bits know; the largest that divides every row is taken."""


@dataclass(frozen=True)
class Scheme:
    """How matrices are stored: bits, `int` or `float`, one scale a row or a group, and activations in 8 bits or not."""

    title: str
    bits: int
    kind: str
    grouped: bool = False
    activations: bool = False


SCHEMES = {
    "int8": Scheme("8-bit integers, a scale a row (W8A16)", 8, "int"),
    "int4": Scheme("4-bit integers, a scale a group (W4A16)", 4, "int", grouped=True),
    "fp8": Scheme("8-bit floats, a scale a row; activations in 8 bits too (FP8 dynamic)", 8, "float", activations=True),
}


@dataclass(frozen=True)
class CompressedCheckpoint:
    """What was written: how many matrices were quantised, their group size, and bytes of weights before and after.

    `experts` are the stacks of experts' matrices, which are no linear layers and keep their format.
    """

    matrices: int
    group: int | None
    bytes_before: int
    bytes_after: int
    experts: int = 0


def write_compressed(
    model: Any, processor: Any, out: Path, kind: str, beside: Callable[[Path], None] = lambda folder: None
) -> CompressedCheckpoint:
    """Return what was written to the folder `out`, whole or not at all; `model` itself is quantised by it.

    Rounded to nearest, without calibration data: the decoder's matrices alone; encoder, projector, embeddings, LM head
    and norms keep their format.

    Args:
        model: an LVLM without an adapter, in the format that other weights shall have.
        processor: its own.
        out: a new or empty folder.
        kind: one of `SCHEMES`.
        beside: writes to the folder, once it holds the model, what else belongs there, such as a card.

    Raises:
        ModelError: an unknown kind, no compressed-tensors, a model already quantised, or rows of an odd length.
        ArtifactError: `out` can't be written.
    """
    scheme = _checked(model, kind)
    chosen = _matrices(model)
    experts = _experts(model)
    group = _group(chosen) if scheme.grouped else None
    before = _size(model)
    check_room(before, out)
    patterns = _ignored(unwrap(model), chosen)
    _quantize(model, chosen, scheme, group, patterns)
    from compressed_tensors.compressors import ModelCompressor

    with new_folder(out) as folder, quietly(True):
        compressor = ModelCompressor.from_pretrained_model(model)
        # It lists every layer by the name that it has in transformers; vLLM has others.
        compressor.quantization_config.ignore = patterns
        compressor.compress_model(model)
        model.save_pretrained(folder)
        compressor.update_config(str(folder))
        processor.save_pretrained(folder)
        beside(folder)
        after = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return CompressedCheckpoint(len(chosen), group, before, after, experts)


def _checked(model: Any, kind: str) -> Scheme:
    if kind not in SCHEMES:
        raise ModelError(f"unknown format {kind!r}", ", ".join(SCHEMES), "int8 loses least")
    if find_spec("compressed_tensors") is None:
        raise ModelError(
            f"{kind} is written by compressed-tensors, which is not installed",
            "the extra `quantize`",
            "pip install 'striate[quantize]'",
        )
    if getattr(unwrap(model).config, "quantization_config", None) is not None:
        raise ModelError(
            "the model is quantised already", "a model in 16 or 32 bits", "take the model as it was before that"
        )
    if rule_of(model) is not None:
        raise ModelError(
            "this model skips image tokens in some layers, which plain transformers would not",
            "a model that computes all tokens in every layer",
            "train it without train.image_tokens: region",
        )
    return SCHEMES[kind]


def _matrices(model: Any) -> dict[str, nn.Linear]:
    """Return the linear layers of decoder layers by name."""
    anatomy = find_anatomy(model)
    found = {
        name: module
        for name, module in unwrap(model).named_modules()
        if isinstance(module, nn.Linear) and layer_of(anatomy, f"{name}.weight") is not None
    }
    if not found:
        raise ModelError(
            f"the decoder of this {anatomy.model_type} has no linear layers of its own",
            "decoder layers made of linear layers",
            "quantise it with a tool for its kind of layers",
        )
    return found


def _experts(model: Any) -> int:
    """Return how many parameters of decoder layers are stacks of matrices."""
    anatomy = find_anatomy(model)
    named = unwrap(model).named_parameters()
    return sum(tensor.ndim > 2 and layer_of(anatomy, name) is not None for name, tensor in named)


def _group(chosen: dict[str, nn.Linear]) -> int:
    for size in GROUPS:
        if not any(module.in_features % size for module in chosen.values()):
            return size
    odd = next(name for name, module in chosen.items() if module.in_features % GROUPS[-1])
    raise ModelError(
        f"rows of {odd} have {chosen[odd].in_features} values, which no group of "
        + ", ".join(map(str, GROUPS))
        + " divides",
        "rows that 32 divides",
        "take int8",
    )


def _quantize(model: Any, chosen: dict[str, nn.Linear], scheme: Scheme, group: int | None, ignored: list[str]) -> None:
    """Give every chosen matrix its scales; values are rounded as the model is compressed."""
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    spread = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    weights = QuantizationArgs(num_bits=scheme.bits, type=scheme.kind, symmetric=True, **spread)
    inputs = QuantizationArgs(num_bits=scheme.bits, type=scheme.kind, symmetric=True, strategy="token", dynamic=True)
    targets = QuantizationScheme(
        targets=["Linear"], weights=weights, input_activations=inputs if scheme.activations else None
    )
    with quietly(True):
        apply_quantization_config(unwrap(model), QuantizationConfig(config_groups={"group_0": targets}, ignore=ignored))
    for module in chosen.values():
        rows = module.weight.detach().float().unflatten(-1, (-1, group or module.in_features))
        scale, zero = calculate_qparams(rows.amin(-1), rows.amax(-1), weights)
        for name, value in (("weight_scale", scale), ("weight_zero_point", zero)):
            if isinstance(kept := getattr(module, name, None), nn.Parameter):
                kept.data.copy_(value)


def _ignored(core: Any, chosen: dict[str, nn.Linear]) -> list[str]:
    """Return patterns of the linear layers that stay as they are, shortest first; none of them meets a chosen one."""
    others = [name for name, module in core.named_modules() if isinstance(module, nn.Linear) and name not in chosen]
    parts = {part for name in others for part in name.split(".") if not part.isdecimal()}
    inside = {part for name in chosen for part in name.split(".")}
    patterns: list[str] = []
    for name in others:
        part = next((part for part in name.split(".") if part in parts - inside), name)
        pattern = f"re:.*{re.escape(part)}.*" if part != name else name
        if pattern not in patterns:
            patterns.append(pattern)
    return patterns


def _size(model: Any) -> int:
    # Tied weights are one tensor.
    tensors = {parameter.data_ptr(): parameter for parameter in model.parameters()}
    return sum(parameter.numel() * parameter.element_size() for parameter in tensors.values())
