"""Table of the original checkpoint layouts that can be imported, and how a config tells which one it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from striate.errors import ModelError, did_you_mean
from striate.models.io.json_files import read_json

PROJECTOR = "mlp2x_gelu"
_MARKS = ("mm_vision_tower", "mm_projector_type", "mm_hidden_size")


@dataclass(frozen=True)
class Layout:
    """One published layout.

    Attributes:
        model_type: `model_type` of the original config.
        title: its name for people.
        llm: transformers' model type of the language model inside.
        ending: the text that ends an answer in the original conversations.
    """

    model_type: str
    title: str
    llm: str
    ending: str


LAYOUTS: tuple[Layout, ...] = (
    Layout("llava", "LLaVA-1.5", "llama", "</s>"),
    Layout("llava_llama", "LLaVA-1.5", "llama", "</s>"),
    Layout("bunny-llama", "Bunny-Llama", "llama", "<|end_of_text|>"),
    Layout("bunny-phi3", "Bunny-Phi3", "phi3", "<|endoftext|>"),
)


def is_original(config: Mapping[str, Any]) -> bool:
    """Return whether a config, as JSON, is that of an original checkpoint and not of transformers' own form."""
    return "vision_config" not in config and any(mark in config for mark in _MARKS)


def read_original(folder: Path) -> dict[str, Any]:
    """Return the config of the original checkpoint in `folder`, as JSON.

    Raises:
        ModelError: no readable config, or not that of an original checkpoint.
    """
    config = read_json(folder / "config.json", "the config.json of the original checkpoint", "check SOURCE")
    if is_original(config):
        return config
    known = "vision_config" in config
    hint = "use it as it is: it is in transformers' own form" if known else "check SOURCE"
    raise ModelError(
        f"{folder} ({config.get('model_type')}) is no original checkpoint: its config names no mm_vision_tower",
        "an original checkpoint of " + ", ".join(dict.fromkeys(row.title for row in LAYOUTS)),
        hint,
    )


def layout_of(config: Mapping[str, Any], folder: Path) -> Layout:
    """Return the layout of an original config, once nothing in it asks for what LLaVA's form can't express.

    Raises:
        ModelError: another model type, projector, or way of looking at pictures.
    """
    kind = str(config.get("model_type"))
    layout = next((row for row in LAYOUTS if row.model_type == kind), None)
    known = ", ".join(row.model_type for row in LAYOUTS)
    if layout is None:
        hint = did_you_mean(kind, [row.model_type for row in LAYOUTS])
        raise _cannot(folder, f"model type {kind!r}", known, f"{hint}use another checkpoint")
    projector = config.get("mm_projector_type")
    if projector != PROJECTOR:
        raise _cannot(folder, f"a projector of type {projector!r}", f"{PROJECTOR}: two linear layers with GELU")
    if config.get("use_s2"):
        raise _cannot(folder, "pictures at several scales (use_s2)", "one scale: use_s2 false")
    if config.get("mm_use_im_start_end"):
        raise _cannot(folder, "tokens round each picture (mm_use_im_start_end)", "mm_use_im_start_end false")
    if "anyres" in str(config.get("image_aspect_ratio")):
        raise _cannot(folder, "pictures cut into tiles (image_aspect_ratio anyres)", "pad, or none")
    return layout


def original_error(source: str, config: Mapping[str, Any]) -> ModelError:
    """Return the error for an original checkpoint where a model of transformers is asked for."""
    kind = (config.get("architectures") or [config.get("model_type")])[0]
    return ModelError(
        f"{source} is an original checkpoint ({kind}), which transformers does not read",
        "a checkpoint in transformers' own form",
        f"convert it once with `striate import {source} --vision VISION_TOWER --out DIR`, then use DIR",
    )


def _cannot(folder: Path, what: str, allowed: str, hint: str = "use another checkpoint") -> ModelError:
    return ModelError(f"{folder} can't be imported: it has {what}", allowed, hint)
