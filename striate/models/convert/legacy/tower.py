"""Finds the vision encoder (vision tower) of an original checkpoint: inside it, or in a folder of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from striate.errors import ModelError
from striate.models.convert.legacy.configs import SIGLIP, Features, features_of, tower_config
from striate.models.convert.legacy.legacy_sources import Tensors, each_tensor, folder_of
from striate.models.convert.legacy.names import tower_name
from striate.models.structure.vision_encoders import encoder_config

CLIP_NAME, SIGLIP_NAME = "openai/clip-vit-large-patch14-336", "google/siglip-so400m-patch14-384"

TOWERS: Mapping[str, Mapping[str, Any]] = {
    CLIP_NAME: {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    },
    SIGLIP_NAME: {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
}
_LAYER = re.compile(r"vision_tower\.vision_model\.encoder\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Tower:
    """Config of the vision tower, the features read from it, and its tensors where they lie apart."""

    config: Any
    features: Features
    folder: Path | None
    tensors: Tensors


def find_tower(original: Mapping[str, Any], inside: Iterable[str], vision: str | Path | None) -> Tower:
    """Return the vision tower: `inside` are the names (in LLaVA's form) of its tensors within the checkpoint, if any.

    `vision` is a folder or hub id; left out, the config's own mm_vision_tower is taken. Weights inside the checkpoint
    take precedence over those of `vision`, of which only the config is then read.

    Raises:
        ModelError: no tower, one of another type or size, or one that is not whole.
    """
    names = set(inside)
    config, folder = _config(original, vision, bool(names))
    trimmed = bool(names) and _trim(config, names)
    features = features_of(original, config, trimmed=trimmed)
    expected = original.get("mm_hidden_size")
    if expected is not None and expected != config.hidden_size:
        raise ModelError(
            f"the vision tower has features of size {config.hidden_size}, and the checkpoint was made for {expected}",
            f"the tower {original.get('mm_vision_tower')!r}",
            "name the folder of the right tower with --vision",
        )
    return Tower(config, features, folder, {} if names or folder is None else _tensors(folder))


def _config(original: Mapping[str, Any], vision: str | Path | None, inside: bool) -> tuple[Any, Path | None]:
    """Return the tower's config, and its folder where one was named or is needed."""
    name = original.get("mm_vision_tower")
    if vision is None and inside and str(name) in TOWERS:
        return tower_config(TOWERS[str(name)]), None
    if vision is None and not name:
        raise ModelError("the checkpoint names no vision tower", "a folder or a hub id", "name it with --vision")
    try:
        folder = folder_of(vision if vision is not None else str(name), "vision tower")
    except ModelError as error:
        hint = "name the folder of the tower with --vision"
        raise ModelError(error.given, error.allowed, error.next_step if vision is not None else hint) from error
    return encoder_config(folder), folder


def _trim(config: Any, names: set[str]) -> bool:
    """Return whether the checkpoint lacks SigLIP's last layer and head, which Bunny never reads; fit the config."""
    layers = {int(match[1]) for name in names if (match := _LAYER.match(name))}
    if config.model_type != SIGLIP:
        return False
    if not any(".head." in name for name in names):
        config.vision_use_head = False
    if layers != set(range(config.num_hidden_layers - 1)):
        return False
    config.num_hidden_layers -= 1
    return True


def _tensors(folder: Path) -> Tensors:
    named = ((tower_name(name), tensor) for name, tensor in each_tensor(folder))
    return {name: tensor for name, tensor in named if name}
