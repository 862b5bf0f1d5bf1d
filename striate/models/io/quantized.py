"""Loads an LVLM with its decoder's matrices in 4 bits, for QLoRA (Dettmers et al., arXiv 2305.14314)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from striate.errors import ModelError
from striate.models.io.adapter_folder import is_adapter
from striate.models.io.devices import resolve_device
from striate.models.io.load import Loaded, load_processor, load_weights
from striate.models.structure.anatomy import layer_of
from striate.models.structure.meta_model import Blueprint, blueprint


def load_quantized(path: str | Path, *, device: str = "auto", revision: str | None = None) -> Loaded:
    """Return the LVLM at `path` in eval mode with its processor, its decoder layers' linear layers in 4 bits.

    NormalFloat 4 with blocks of 64 and quantised scales (0.52 bytes a weight); products run in bfloat16. The vision
    encoder, the projector, the embeddings, the LM head and all norms stay bfloat16. Base weights do not train and
    need no further preparation: the projector's gradient crosses every layer.

    Args:
        path: a Hugging Face LVLM folder or hub id; not an adapter.
        device: `auto`, `cuda` or `cuda:N`.
        revision: branch, tag or commit of a hub id.

    Raises:
        ModelError: no CUDA device, bitsandbytes is not installed, an adapter, or what `load_model` raises.
    """
    place = resolve_device(device)
    check_quantization(place)
    if is_adapter(Path(path)):
        raise ModelError(
            f"{path} is an adapter: its base can't be quantised and merged with it at once",
            "a whole model",
            "load it with merge=True, save it, and quantise that",
        )
    settings = decoder_quantization(blueprint(str(path), revision))
    model = load_weights(
        path,
        device=place,
        dtype=torch.bfloat16,
        revision=revision,
        quantization_config=settings,
        # accelerate compares devices by number, and "cuda" alone has none.
        device_map={"": torch.device("cuda", place.index or 0) if place.type == "cuda" else place},
    )
    return Loaded(model, load_processor(path, revision=revision))


def check_quantization(device: torch.device) -> None:
    """Raise unless `device` and what is installed can hold weights in 4 bits.

    Raises:
        ModelError: not a CUDA device, or bitsandbytes is not installed.
    """
    if device.type != "cuda":
        raise ModelError(
            f"train.method qlora needs a CUDA device, and the device is {device}",
            "qlora on CUDA; lora or full anywhere",
            "use --set train.method=lora, or run on a machine with CUDA",
        )
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            "train.method qlora needs bitsandbytes, which is not installed",
            "an environment with bitsandbytes",
            'install it with `pip install "striate[qlora]"`',
        )


def decoder_quantization(plan: Blueprint) -> BitsAndBytesConfig:
    """Return the settings that put the decoder layers' linear layers of `plan` in 4 bits, and nothing else."""
    kept = [
        name
        for name, module in plan.model.named_modules()
        if isinstance(module, nn.Linear) and layer_of(plan.anatomy, name) is None
    ]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=kept,
    )
