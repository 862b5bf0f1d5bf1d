"""Builds the processor of an imported checkpoint: tokenizer with image token, image processor and chat template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, LlavaProcessor

from striate.errors import ModelError, first_line
from striate.models.convert.add_image_token import pad_token
from striate.models.convert.chat_templates import IMAGE_TOKEN, check_ending, conversation
from striate.models.convert.legacy.configs import CLIP
from striate.models.convert.legacy.layouts import Layout
from striate.models.convert.legacy.tower import Tower
from striate.models.io.json_files import read_json
from striate.models.structure.vision_encoders import Fit, image_processor

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def read_tokenizer(text_config: Any, *folders: Path) -> Any:
    """Return the tokenizer in the first of `folders` that has one; `text_config` is of the language model.

    Raises:
        ModelError: none has, or it can't be read.
    """
    for folder in folders:
        if not any((folder / name).is_file() for name in _TOKENIZER_FILES[:2]):
            continue
        try:
            return AutoTokenizer.from_pretrained(folder, config=text_config, trust_remote_code=False)
        except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
            slow = not (folder / "tokenizer.json").is_file()
            raise ModelError(
                f"the tokenizer in {folder} can't be read: {first_line(error)}",
                "tokenizer.json, or tokenizer.model with the package sentencepiece",
                "pip install sentencepiece protobuf" if slow else "copy its files again",
            ) from error
    raise ModelError(f"{folders[0]} has no tokenizer", ", ".join(_TOKENIZER_FILES), "copy the tokenizer's files there")


def build_processor(
    tokenizer: Any, tower: Tower, original: Mapping[str, Any], layout: Layout, owner: str
) -> LlavaProcessor:
    """Return the processor; pictures are padded to squares where the original pads (image_aspect_ratio "pad").

    Raises:
        ModelError: the tokenizer lacks the token that ends an answer, or how pictures are normalised is not known.
    """
    check_ending(tokenizer, layout.ending, owner)
    pad_token(tokenizer)
    fit: Fit = "crop" if tower.config.model_type == CLIP else "squeeze"
    if original.get("image_aspect_ratio") == "pad":
        fit = "pad"
    pictures = image_processor(tower.config, tower.folder, fit=fit)
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy=tower.features.strategy,
        chat_template=conversation(layout.ending),
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=tower.features.extra(tower.config),
    )


def generation_config(folder: Path, tokenizer: Any, layout: Layout) -> GenerationConfig:
    """Return a plain generation config: the original's end tokens, and the one that ends its conversations."""
    file = folder / "generation_config.json"
    stored = read_json(file, "a JSON object", "copy it again, or remove it") if file.is_file() else {}
    ends = stored.get("eos_token_id", tokenizer.eos_token_id)
    ids = {*(ends if isinstance(ends, list) else [ends]), tokenizer.convert_tokens_to_ids(layout.ending)} - {None}
    return GenerationConfig(
        bos_token_id=stored.get("bos_token_id", tokenizer.bos_token_id),
        eos_token_id=sorted(ids) if len(ids) > 1 else ids.pop(),
        pad_token_id=tokenizer.pad_token_id,
    )
