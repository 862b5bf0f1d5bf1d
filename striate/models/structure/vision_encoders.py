"""Reads a vision encoder's config, and builds its image processor: size, mean and deviation, padding or crop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import AutoConfig

from striate.errors import ModelError
from striate.models.io.foreign import reading_model
from striate.models.io.json_files import object_of
from striate.models.io.model_folder import check_source

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESSOR = "preprocessor_config.json"
Fit = Literal["pad", "crop", "squeeze"]


@dataclass(frozen=True)
class Encoder:
    """The pictures that one type of vision encoder was trained on: mean and deviation of each channel, 0 to 1."""

    model_type: str
    title: str
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]


ENCODERS: tuple[Encoder, ...] = (
    Encoder("clip_vision_model", "CLIP", CLIP_MEAN, CLIP_STD),
    Encoder("siglip_vision_model", "SigLIP", (0.5,) * 3, (0.5,) * 3),
    Encoder("dinov2", "DINOv2", IMAGENET_MEAN, IMAGENET_STD),
    Encoder("vit", "ViT", (0.5,) * 3, (0.5,) * 3),
    Encoder("efficientnet_lite", "EfficientNet-Lite", (127 / 255,) * 3, (128 / 255,) * 3),
)


def encoder_config(folder: Path) -> Any:
    """Return the config of the vision encoder in `folder`; of a pair such as CLIP, its vision half.

    Raises:
        ModelError: no config there, or no vision encoder.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} holds no vision encoder: it has no config.json",
            "a folder that `save_pretrained` of a vision encoder wrote",
            "check --vision",
        )
    check_source(str(folder))
    with reading_model(
        f"{folder / 'config.json'} can't be used",
        "a model type of transformers",
        "check the file, or upgrade transformers",
    ):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    config = getattr(config, "vision_config", config)
    sizes = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if all(isinstance(size, int) and size > 0 for size in sizes):
        return config
    raise ModelError(
        f"{folder} ({config.model_type}) is no vision encoder of square pictures cut into patches",
        ", ".join(row.title for row in ENCODERS) + ", or another with image_size and patch_size in its config",
        "choose another folder with --vision",
    )


def patches(config: Any) -> int:
    """Return how many patches one picture has: (image size / patch size) squared."""
    return (config.image_size // config.patch_size) ** 2


def image_processor(config: Any, folder: Path | None, *, fit: Fit) -> Any:
    """Return an image processor that makes squares of `config.image_size` px, as the encoder expects them.

    `fit` says how a picture becomes a square: `pad` lays it on a square of the mean colour (LLaVA-1.5's way), `crop`
    takes its middle (CLIP's), `squeeze` changes its proportions (SigLIP's). Mean and deviation come from `folder`'s
    preprocessor_config.json if there is one, else from `ENCODERS`.

    Raises:
        ModelError: neither knows how this encoder's pictures are normalised.
    """
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    mean, std = _normalization(config, folder)
    square = {"height": config.image_size, "width": config.image_size}
    return LlavaImageProcessorPil(
        do_pad=fit == "pad",
        size={"shortest_edge": config.image_size} if fit == "crop" else square,
        crop_size=square,
        do_center_crop=fit == "crop",
        image_mean=list(mean),
        image_std=list(std),
    )


def _normalization(config: Any, folder: Path | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    file = folder / PREPROCESSOR if folder else None
    if file and file.is_file():
        named = ", ".join(row.title for row in ENCODERS)
        advice = "the file that belongs to the vision encoder", f"copy it again, or remove it if the encoder is {named}"
        with reading_model(f"{file} can't be used: it holds no image_mean and image_std", *advice):
            stored = object_of(file)
            return tuple(map(float, stored["image_mean"])), tuple(map(float, stored["image_std"]))
    for row in ENCODERS:
        if row.model_type == config.model_type:
            return row.image_mean, row.image_std
    raise ModelError(
        f"how pictures for a {config.model_type} are normalised is not known",
        f"{PREPROCESSOR} beside its weights, or one of " + ", ".join(row.title for row in ENCODERS),
        f"put its {PREPROCESSOR} into the folder",
    )
