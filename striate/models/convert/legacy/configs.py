"""Builds the transformers LLaVA config of an original checkpoint, and its model on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration

from striate.errors import ModelError
from striate.models.convert.legacy.layouts import Layout
from striate.models.structure.vision_encoders import patches

CLIP, SIGLIP = "clip_vision_model", "siglip_vision_model"
# What the config of a language model may say beside the fields of today's class.
_FORMER_NAMES = ("rope_theta", "rope_scaling", "original_max_position_embeddings")
_NOT_THE_LLM = frozenset({"model_type", "architectures", "transformers_version", "_name_or_path", "dtype"})
_LAYER, _FEATURE = -2, "patch"


@dataclass(frozen=True)
class Features:
    """Which of the vision tower's hidden states the projector reads, and whether the class token is dropped."""

    layer: int
    strategy: str

    def tokens(self, tower: Any) -> int:
        """Return how many image tokens a picture has."""
        return patches(tower) + self.extra(tower) - (self.strategy == "default")

    def extra(self, tower: Any) -> int:
        """Return how many tokens the tower puts before its patches."""
        return int(tower.model_type == CLIP)


def features_of(original: Mapping[str, Any], tower: Any, *, trimmed: bool) -> Features:
    """Return the features that the original reads.

    LLaVA-1.5 reads layer -2 of CLIP without the class token. Bunny reads layer -2 of SigLIP, which has no class token;
    its checkpoints may come with the tower's last layer already taken off (`trimmed`): then it is layer -1, before the
    final norm.

    Raises:
        ModelError: a vision tower of another type.
    """
    if tower.model_type == SIGLIP:
        return Features(-1 if trimmed else _LAYER, "full")
    if tower.model_type == CLIP:
        whole = original.get("mm_vision_select_feature", _FEATURE) != _FEATURE
        return Features(int(original.get("mm_vision_select_layer", _LAYER)), "full" if whole else "default")
    raise ModelError(
        f"unknown vision tower {original.get('mm_vision_tower')!r}: its config is of type {tower.model_type}",
        "CLIP or SigLIP",
        "name the folder of the right tower with --vision",
    )


def llava_config(original: Mapping[str, Any], layout: Layout, tower: Any, features: Features) -> LlavaConfig:
    """Return the config in LLaVA's form, before an image token is added."""
    return LlavaConfig(
        vision_config=tower,
        text_config=text_config(original, layout),
        image_token_index=int(original["vocab_size"]),
        image_seq_length=features.tokens(tower),
        vision_feature_layer=features.layer,
        vision_feature_select_strategy=features.strategy,
        tie_word_embeddings=bool(original.get("tie_word_embeddings", False)),
    )


def text_config(original: Mapping[str, Any], layout: Layout) -> Any:
    """Return the language model's config: the fields of the original that its class knows."""
    known = set(AutoConfig.for_model(layout.llm).to_dict()) | set(_FORMER_NAMES)
    settings = {key: value for key, value in original.items() if key in known - _NOT_THE_LLM and value is not None}
    return AutoConfig.for_model(layout.llm, **settings)


def tower_config(settings: Mapping[str, Any]) -> Any:
    """Return a vision tower's config from its fields, `model_type` among them."""
    fields = dict(settings)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def on_meta(config: LlavaConfig) -> LlavaForConditionalGeneration:
    """Return the model of `config` without weights."""
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.tie_weights()
    return model
