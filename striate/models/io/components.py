"""Loads the components of a new LVLM: a causal language model with its tokenizer, and a vision encoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from striate.errors import ModelError, first_line
from striate.models.convert.legacy.legacy_sources import folder_of
from striate.models.io.foreign import reading_model
from striate.models.structure.vision_encoders import encoder_config, patches
from striate.printable import shown
from striate.storage.read_files import user_path

# Sizes of a GGUF file's model, and how many times the largest of its tensors they may be: most are one of those.
_GGUF_SIZES = ("embedding_length", "feed_forward_length", "vocab_size", "expert_count")
_GGUF_ROOM = 8
# Parts of an encoder that no feature map goes through: checkpoints of classifiers lack them.
_BEYOND_FEATURES = ("pooler.", "head.", "vision_model.head.")


@dataclass(frozen=True)
class Sight:
    """What an LVLM reads from its encoder.

    Attributes:
        layer: which of the hidden states, as an index.
        strategy: `default` drops the class token that comes first, `full` keeps all tokens.
        tokens: image tokens of one picture.
        extra: tokens that the encoder puts before those of the patches.
        patch_size: pixels of a patch's edge.
    """

    layer: int
    strategy: str
    tokens: int
    extra: int
    patch_size: int


def load_llm(path: Path | str, *, dtype: torch.dtype | str = torch.float32) -> tuple[Any, Any]:
    """Return the causal language model at `path` (a folder, hub id or .gguf file) in eval mode, and its tokenizer.

    Raises:
        ModelError: no such path, not a causal language model, or incomplete weights.
    """
    file = user_path(path)
    options: dict[str, Any] = {"trust_remote_code": False}
    if file.is_file() and file.suffix == ".gguf":
        _check_gguf(file)
        folder, options = file.parent, {**options, "gguf_file": file.name}
    elif file.is_file():
        raise ModelError(f"{file} holds no LLM", "a .gguf file, or a folder with config.json", "check --llm")
    else:
        folder = folder_of(path, "LLM")
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} holds no LLM", "a .gguf file, or a folder with config.json", "check --llm")
    with reading_model(
        f"{path} can't be used as the LLM",
        "a causal language model of transformers, with its tokenizer",
        "check --llm; a vision-language model needs no composing",
    ):
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    _check_whole(str(path), sorted(info["missing_keys"]), "--llm")
    return model.eval(), tokenizer


def _check_gguf(file: Path) -> None:
    """Raise for a GGUF file that is no whole one, or claims layers or sizes far beyond those of its tensors.

    transformers builds what the file claims before it looks at the tensors: layers without end, say.

    Raises:
        ModelError: it is.
    """
    with reading_model(f"{file} can't be read", "a whole GGUF file of a language model", "download it again"):
        reader = GGUFReader(file)
        kind = reader.fields["general.architecture"].contents()
        fields = {name: reader.fields.get(f"{kind}.{name}") for name in ("block_count", *_GGUF_SIZES)}
        claimed = {name: field.contents() for name, field in fields.items() if field is not None}
        layers = len({tensor.name.split(".")[1] for tensor in reader.tensors if tensor.name.startswith("blk.")})
        largest = max(int(size) for tensor in reader.tensors for size in tensor.shape)
    for name, value in claimed.items():
        most = layers if name == "block_count" else _GGUF_ROOM * largest
        if isinstance(value, int) and value > most:
            raise ModelError(
                f"{file} has {kind}.{name} {shown(value)}, and tensors of {layers} layers, {largest} wide at most",
                "a GGUF file whose tensors are those that it describes",
                "download it again, or choose another file",
            )


def load_encoder(path: Path | str, *, dtype: torch.dtype) -> tuple[Any, Path]:
    """Return the vision encoder at `path` in eval mode, and its folder; of a pair such as CLIP, the vision half.

    Raises:
        ModelError: no such path, no vision encoder, or incomplete weights.
    """
    folder = folder_of(path, "vision encoder")
    config = encoder_config(folder)
    with reading_model(
        f"{path} can't be used as the vision encoder", "config.json and weights of one vision encoder", "check --vision"
    ):
        encoder, info = AutoModel.from_pretrained(
            folder, config=config, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
    missing = [name for name in sorted(info["missing_keys"]) if not name.startswith(_BEYOND_FEATURES)]
    _check_whole(str(path), missing, "--vision")
    return encoder.eval(), folder


def sight_of(encoder: Any, layer: int | None) -> Sight:
    """Return what to read from `encoder`, found by showing it one black picture.

    Raises:
        ModelError: no hidden states, another number of tokens than patches and one class token, or no such layer.
    """
    config = encoder.config
    name = type(encoder).__name__
    black = torch.zeros(1, 3, config.image_size, config.image_size, dtype=encoder.dtype)
    try:
        with torch.no_grad():
            states = encoder(pixel_values=black, output_hidden_states=True).hidden_states
        count = len(states)
        shape = tuple(states[-1].shape)
    except Exception as error:
        raise _unfit(f"{name} gives no hidden states for a picture: {first_line(error)}") from error
    chosen = layer if layer is not None else -min(2, count)
    if not -count <= chosen < count:
        given = f"{name} has {count} hidden states, and layer {chosen} was asked for"
        raise ModelError(given, f"a layer from {-count} to {count - 1}", "leave the layer out to read the last but one")
    extra = shape[1] - patches(config) if len(shape) == 3 else -1
    if extra not in (0, 1):
        raise _unfit(f"{name} makes hidden states of shape {shape} of a picture of {patches(config)} patches")
    return Sight(chosen, "default" if extra else "full", patches(config), extra, config.patch_size)


def _unfit(given: str) -> ModelError:
    return ModelError(
        given, "one token a patch, with or without a class token before them", "choose another vision encoder"
    )


def _check_whole(path: str, missing: list[str], flag: str) -> None:
    """Refuse weights that transformers would make up."""
    if missing:
        raise ModelError(
            f"{path} lacks {len(missing)} tensors, for example {missing[0]}",
            "whole weights of the model that config.json describes",
            f"download it again, or check {flag}",
        )
