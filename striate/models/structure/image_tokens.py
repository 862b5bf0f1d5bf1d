"""Counts the image tokens of one picture from the config alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from striate.models.io.foreign import reading_model
from striate.models.structure.anatomy import unwrap

PICTURE_PX = 672


@dataclass(frozen=True)
class ImageTokens:
    """The image tokens of one picture, and what they are counted for, in words."""

    count: int
    picture: str

    def __str__(self) -> str:
        return f"{self.count} image tokens for {self.picture}"


def image_tokens(model: Any) -> ImageTokens:
    """Return the image tokens of one picture; `model` may lie on the meta device.

    Families that resize every picture to one size have one number. Where the number grows with the picture, it is
    that of 672 x 672 px; where pictures are cut into tiles, that of one tile. Separators count as text.

    Raises:
        ModelError: its config has no sizes that can be counted with.
    """
    config = unwrap(model).config
    vision = getattr(config, "vision_config", config)
    with reading_model(
        f"the image tokens of a picture can't be counted from the config of this {config.model_type}",
        "sizes of pictures and patches of 1 or more",
        "check vision_config in config.json",
    ):
        return (
            _fixed(config, vision)
            or _grown(config, vision)
            or _shuffled(config, vision)
            or _run(unwrap(model), vision)
            or _patches(config, vision)
        )


def _fixed(config: Any, vision: Any) -> ImageTokens | None:
    resampler = getattr(config, "perceiver_config", None)
    places = ((config, "mm_tokens_per_image"), (vision, "num_image_tokens"), (resampler, "resampler_n_latents"))
    for place, name in places:
        count = getattr(place, name, None)
        if isinstance(count, int) and count > 0:
            return ImageTokens(count, "every picture")
    return None


def _grown(config: Any, vision: Any) -> ImageTokens | None:
    """Return the number for families that keep a picture's size and join `spatial_merge_size` squared patches."""
    merge = getattr(vision, "spatial_merge_size", None) or getattr(config, "spatial_merge_size", None)
    if not isinstance(merge, int):
        return None
    side = PICTURE_PX // (_side(vision.patch_size) * merge)
    return ImageTokens(side * side, f"a picture of {PICTURE_PX} x {PICTURE_PX} px (larger pictures have more)")


def _shuffled(config: Any, vision: Any) -> ImageTokens | None:
    """Return the number of a tile for families that fold `scale_factor` squared patches into one token."""
    factor = getattr(config, "scale_factor", None)
    if not isinstance(factor, int):
        return None
    side = _side(vision.image_size)
    return ImageTokens((side // _side(vision.patch_size)) ** 2 // factor**2, f"a tile of {side} x {side} px")


def _run(model: Any, vision: Any) -> ImageTokens | None:
    """Return the number that the vision encoder and projector give for one picture without values."""
    side = _side(getattr(vision, "image_size", None))
    find = getattr(model, "get_image_features", None)
    if not side or find is None or next(model.parameters()).device.type != "meta":
        return None
    pixels = torch.empty(1, 3, side, side, device="meta", dtype=model.dtype)
    try:
        output = find(pixel_values=pixels)
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError):
        # Families that cut pictures into tiles ask for their sizes too.
        return None
    features = getattr(output, "pooler_output", output)
    features = features[0] if isinstance(features, list | tuple) else features
    if not isinstance(features, torch.Tensor) or features.dim() < 2:
        return None
    return ImageTokens(features.shape[-2], f"a picture, resized to {side} x {side} px")


def _patches(config: Any, vision: Any) -> ImageTokens:
    side, patch = _side(getattr(vision, "image_size", None)), _side(getattr(vision, "patch_size", None))
    if not side or not patch:
        count = getattr(config, "image_seq_length", None) or 0
        return ImageTokens(count, "every picture, as the config says")
    return ImageTokens((side // patch) ** 2, f"a picture or tile of {side} x {side} px")


def _side(size: Any) -> int:
    if isinstance(size, list | tuple):
        return int(size[0])
    return int(size) if isinstance(size, int) else 0
