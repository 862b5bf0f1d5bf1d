"""What a loaded model must be before it is asked anything: of finite numbers, and of one mind with its processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from striate.errors import ModelError
from striate.models.io.weights.finite_bytes import not_finite
from striate.models.structure.anatomy import find_anatomy

MOST_PER_BYTE, LARGE = 8, 10**9
WEIGHT_FILES = ("*.safetensors", "*.bin")


def check_size(config: Any, folder: Path) -> None:
    """Raise a ModelError where `config` describes a model that the weights in `folder` can't fill, at one bit each.

    A config without its `text_config`, say, stands for a model of billions, and transformers would make up its weights.
    """
    stored = sum(file.stat().st_size for pattern in WEIGHT_FILES for file in folder.glob(pattern))
    if not stored:
        return
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    count = sum(weight.numel() for weight in model.parameters())
    if count > max(MOST_PER_BYTE * stored, LARGE):
        raise ModelError(
            f"{folder}/config.json describes {count:,} parameters, and its weights have {stored:,} bytes",
            "weights and config.json of one model",
            "copy both from the same model",
        )


def check_finite(model: Any, source: str = "memory") -> None:
    """Raise a ModelError where a weight of `model` is infinite or no number: its answers would be noise that scores."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not weight.is_meta and not is_finite(weight):
            raise not_finite(source, name)


def is_finite(weight: torch.Tensor) -> bool:
    """Return whether all of a tensor's numbers are finite."""
    # A sum takes one pass and no memory, and one bad value makes it bad; so do very large ones, rarely.
    return bool(torch.isfinite(weight.sum(dtype=torch.float32))) or bool(torch.isfinite(weight).all())


def check_image_token(model: Any, processor: Any, source: str) -> None:
    """Raise a ModelError where config and processor do not name the same token for a picture."""
    expected = find_anatomy(model).image_token_ids
    written = [getattr(owner, "image_token_id", None) for owner in (processor.tokenizer, processor)]
    known = {token for token in written if isinstance(token, int)}
    if expected and known and not known & set(expected):
        raise ModelError(
            f"{source}: the model reads pictures at token {', '.join(map(str, expected))}, and its processor writes "
            f"{', '.join(map(str, sorted(known)))}",
            "a config and a processor that belong together",
            "copy config.json and the processor's files from one model",
        )


def check_special_tokens(model: Any, processor: Any, source: str) -> None:
    """Raise a ModelError where the token that pads, begins or ends a sample has no embedding."""
    rows, tokenizer = model.get_input_embeddings().weight.shape[0], processor.tokenizer
    for name in ("pad_token", "bos_token", "eos_token"):
        token = getattr(tokenizer, f"{name}_id", None)
        if isinstance(token, int) and token >= rows:
            raise ModelError(
                f"{source}: the tokenizer's {name} {getattr(tokenizer, name)!r} is token {token}, and the model has "
                f"embeddings of {rows} tokens",
                "a tokenizer and a model that belong together",
                f"name another {name} in tokenizer_config.json, or copy the tokenizer's files from the model",
            )
