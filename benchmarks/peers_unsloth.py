"""Steps of a model that unsloth loaded and wrapped: its own patched modules, loss and checkpointing.

It must be imported before transformers, and loads models from folders alone, so the random model is written to one.
"""

from __future__ import annotations

import gc
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from peers_trl import processor_of
from transformers import LlavaConfig
from true_shapes import build

from striate import Region, lora_config

MAX_LENGTH = 1024


def unsloth_model(config: LlavaConfig, region: Region, device: str, checkpointing: bool) -> Any:
    """Return a random LVLM of this shape as unsloth makes it ready: LoRA in the region, the projector in full."""
    tool = import_module("unsloth").FastVisionModel
    with tempfile.TemporaryDirectory() as folder:
        wanted = _written(config, region, device, Path(folder))
        how: Any = "unsloth" if checkpointing else False
        model, _ = tool.from_pretrained(
            folder,
            dtype=torch.bfloat16,
            load_in_4bit=False,
            max_seq_length=MAX_LENGTH,
            use_gradient_checkpointing=how,
        )
    model = tool.get_peft_model(
        model,
        r=wanted.r,
        lora_alpha=wanted.lora_alpha,
        lora_dropout=wanted.lora_dropout,
        target_modules=sorted(wanted.target_modules),
        modules_to_save=list(wanted.modules_to_save or ()),
        use_gradient_checkpointing=how,
    )
    tool.for_training(model, use_gradient_checkpointing=bool(checkpointing))
    return model


def _written(config: LlavaConfig, region: Region, device: str, folder: Path) -> Any:
    """Return what LoRA shall be, after writing a random model with its processor to the folder."""
    model = build(config, device)
    model.save_pretrained(folder)
    processor_of(config).save_pretrained(folder)
    wanted = lora_config(model, region)
    del model
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return wanted
