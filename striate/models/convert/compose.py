"""Composes a new LVLM in LLaVA's form: any vision encoder, any decoder-only language model, a fresh projector.

Liu et al., "Improved Baselines with Visual Instruction Tuning" (https://arxiv.org/abs/2310.03744): features of the
encoder go through two linear layers with GELU, and take the place of image tokens among the text's embeddings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from striate.errors import ModelError
from striate.models.convert.add_image_token import Vocabulary, add_image_token, pad_token
from striate.models.convert.chat_templates import IMAGE_TOKEN, conversation, with_pictures
from striate.models.io.components import Sight, load_encoder, load_llm, sight_of
from striate.models.io.load import Loaded
from striate.models.io.quiet import quietly
from striate.models.structure.anatomy import find_anatomy
from striate.models.structure.vision_encoders import Fit, image_processor

_ROUNDING = {torch.float32: 1e-4}
_LOW_PRECISION = 2e-2


def compose(
    vision: Path | str,
    llm: Path | str,
    *,
    layer: int | None = None,
    fit: Fit = "pad",
    dtype: torch.dtype | str = "auto",
    seed: int = 0,
) -> Loaded:
    """Return a new LVLM in eval mode with its processor; its projector is random, drawn from `seed`.

    It answers nothing about pictures until the projector is aligned: train it with region `none`.

    Args:
        vision: folder or hub id of a vision encoder with square pictures (CLIP, SigLIP, DINOv2, ...).
        llm: folder or hub id of a causal language model, or a .gguf file.
        layer: which of the encoder's hidden states to read; by default the last but one, as LLaVA does.
        fit: how a picture becomes a square: `pad`, `crop` or `squeeze`.
        dtype: `auto` keeps the language model's own.
        seed: of the projector.

    Raises:
        ModelError: a path is missing or holds something else, or the two can't be joined in LLaVA's form.
    """
    with quietly(True):
        language_model, tokenizer = load_llm(llm, dtype=dtype)
        encoder, folder = load_encoder(vision, dtype=language_model.dtype)
        sight = sight_of(encoder, layer)
        _check_room(language_model, sight)
        images = image_processor(encoder.config, folder, fit=fit)
        _grow(
            language_model, add_image_token(tokenizer, language_model.get_input_embeddings().weight.shape[0], str(llm))
        )
        pad_token(tokenizer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = join(language_model, encoder, tokenizer, sight)
        find_anatomy(model)
        _check_text(model, language_model, str(llm))
        model.generation_config = _generation_config(language_model, tokenizer)
    return Loaded(model.eval(), _processor(tokenizer, images, sight))


def join(language_model: Any, encoder: Any, tokenizer: Any, sight: Sight) -> LlavaForConditionalGeneration:
    """Return the LVLM of both parts, which become its own without a copy; the projector between them is random.

    `tokenizer` knows the image token, and the language model has a row for it.

    Raises:
        ModelError: the LM head adds a bias, which LLaVA's has no place for.
    """
    head = language_model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise ModelError(
            f"the LM head of {type(language_model).__name__} is not a plain matrix",
            "a language model whose LM head has no bias",
            "choose another language model",
        )
    config = _config(language_model.config, encoder.config, tokenizer, sight)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    decoder, former = language_model.base_model, language_model.config
    for module in decoder.modules():
        if getattr(module, "config", None) is former:
            module.config = config.text_config
    projector = LlavaMultiModalProjector(config)
    for module in projector.modules():
        model._init_weights(module)
    model.model.vision_tower, model.model.language_model = encoder, decoder
    model.model.multi_modal_projector = projector.to(language_model.dtype)
    model.lm_head = head
    model.tie_weights()
    return model


def _config(text: Any, vision: Any, tokenizer: Any, sight: Sight) -> LlavaConfig:
    settings = {key: value for key, value in text.to_dict().items() if key != "quantization_config"}
    settings |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    settings |= {"pad_token_id": tokenizer.pad_token_id, "_name_or_path": ""}
    return LlavaConfig(
        vision_config=vision,
        text_config=type(text)(**settings),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=sight.tokens,
        vision_feature_select_strategy=sight.strategy,
        vision_feature_layer=sight.layer,
        tie_word_embeddings=text.tie_word_embeddings,
    )


def _grow(language_model: Any, vocabulary: Vocabulary) -> None:
    if vocabulary.rows == vocabulary.rows_before:
        return
    language_model.resize_token_embeddings(vocabulary.rows, mean_resizing=False)
    with torch.no_grad():
        for module in (language_model.get_input_embeddings(), language_model.get_output_embeddings()):
            module.weight.copy_(vocabulary.extended(module.weight[: vocabulary.rows_before]))


def _check_room(language_model: Any, sight: Sight) -> None:
    room = getattr(language_model.config, "max_position_embeddings", None)
    if room is not None and sight.tokens >= room:
        raise ModelError(
            f"a picture takes {sight.tokens} image tokens, and the language model has {room} positions",
            "an encoder of fewer patches, or a language model of longer texts",
            "choose other parts",
        )


def _check_text(model: Any, language_model: Any, name: str) -> None:
    """Refuse a language model that does more than its decoder and LM head: the rest has no place in LLaVA's form."""
    ids = torch.arange(16)[None] % language_model.get_input_embeddings().weight.shape[0]
    ids[ids == model.config.image_token_id] = 0
    with torch.no_grad():
        ours, theirs = model(input_ids=ids).logits.float(), language_model(input_ids=ids).logits.float()
    allowed = float(theirs.abs().max()) * _ROUNDING.get(language_model.dtype, _LOW_PRECISION)
    difference = float((ours - theirs).abs().max())
    # Written so that a NaN is refused too.
    if not difference <= allowed:
        raise ModelError(
            f"the logits of {name} ({type(language_model).__name__}) change by {difference:.3g} inside LLaVA's form:"
            " it scales or bounds them after its LM head",
            "a language model that is a decoder and an LM head, such as Llama, Qwen, Phi-3 or SmolLM",
            "choose another language model",
        )


def _generation_config(language_model: Any, tokenizer: Any) -> GenerationConfig:
    own = getattr(language_model.generation_config, "eos_token_id", None)
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=own if own is not None else tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _processor(tokenizer: Any, images: Any, sight: Sight) -> LlavaProcessor:
    """Return the processor, with the language model's own chat template where it has one, made to take pictures."""
    own = tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default")
    template = with_pictures(own) if own else conversation(tokenizer.eos_token or "\n")
    tokenizer.chat_template = None
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=sight.patch_size,
        vision_feature_select_strategy=sight.strategy,
        chat_template=template,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=sight.extra,
    )
