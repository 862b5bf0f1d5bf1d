"""The code in a model card: it loads the checkpoint and asks it about a picture, and runs as printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from striate.config import BUILTIN
from striate.models.io.adapter_folder import base_of, base_revision_of, is_adapter
from striate.models.io.json_files import object_of

FENCE = "````"
# The model type that `striate.demo` registers; asking transformers for it would import all of it for a card.
OWN_ENCODER = "efficientnet_lite"
PICTURE, QUESTION = "picture.jpg", "What is in this picture?"
_ASK = (
    "",
    f'picture = Image.open("{PICTURE}")',
    f'content = [{{"type": "image"}}, {{"type": "text", "text": "{QUESTION}"}}]',
    'chat = [{"role": "user", "content": content}]',
    "prompt = processor.apply_chat_template(chat, add_generation_prompt=True)",
    'inputs = processor(images=picture, text=prompt, return_tensors="pt").to(model.device, model.dtype)',
    "reply = model.generate(**inputs, max_new_tokens=64)",
    'print(processor.decode(reply[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
)


def fenced(lines: Sequence[str]) -> list[str]:
    """Return lines of Python in a fence of Markdown."""
    return [f"{FENCE}python", *lines, FENCE]


def example_code(name: str, base: str | None, checkpoint: Path | None, by_striate: bool) -> list[str]:
    """Return the lines that load the model called `name` as `model` and `processor`, and ask it.

    Args:
        name: what it is loaded by: a folder or hub id.
        base: the model under an adapter; None for a whole model.
        checkpoint: its folder by now. Without one, or without a chat template there, nothing is asked.
        by_striate: whether only striate makes the model what it was trained as.
    """
    asks = checkpoint is not None and _has_template(checkpoint)
    head = ["from PIL import Image"] if asks else []
    if by_striate:
        return [
            *head,
            *([""] if head else []),
            "import striate",
            "",
            f"loaded = striate.load_model({name!r})",
            "model, processor = loaded.model, loaded.processor",
            *(_ASK if asks else ()),
        ]
    # The built-in model's folder has another name in every cache.
    own = base == BUILTIN
    if own or (checkpoint is not None and needs_striate(checkpoint)):
        head = ["import striate  # for its vision encoder", *head]
    if base is None:
        load = [f"model = AutoModelForImageTextToText.from_pretrained({name!r})"]
    else:
        head.append("from peft import PeftModel")
        revision = base_revision_of(checkpoint) if checkpoint and is_adapter(checkpoint) else None
        pinned = f", revision={revision!r}" if revision else ""
        stock = f"AutoModelForImageTextToText.from_pretrained({base!r}{pinned})"
        load = [
            f"base = {f'striate.load_model({base!r}).model' if own else stock}",
            f"model = PeftModel.from_pretrained(base, {name!r})",
        ]
    if checkpoint is not None and _settings(checkpoint).get("quant_method") == "compressed-tensors":
        head = ["# pip install compressed-tensors", *head]
    return [
        *head,
        f"from transformers import {'' if own else 'AutoModelForImageTextToText, '}AutoProcessor",
        "",
        *load,
        f"processor = AutoProcessor.from_pretrained({name!r})",
        *(_ASK if asks else ()),
    ]


def quantisation_of(checkpoint: Path) -> str:
    """Return the sentence that says how a quantised checkpoint is stored; empty of any other."""
    settings = _settings(checkpoint)
    groups = settings.get("config_groups")
    group = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = group.get("weights") if isinstance(group, dict) else None
    if isinstance(weights, dict) and isinstance(weights.get("num_bits"), int):
        kind = "floats" if weights.get("type") == "float" else "integers"
        return f"Its quantised matrices are {weights['num_bits']}-bit {kind}."
    return "Its weights are quantised." if settings else ""


def _settings(checkpoint: Path) -> dict[str, Any]:
    """Return the settings of a quantised checkpoint; none of any other."""
    settings = object_of(checkpoint / "config.json").get("quantization_config")
    return settings if isinstance(settings, dict) else {}


def _has_template(checkpoint: Path) -> bool:
    """Return whether the processor in a checkpoint's folder writes chats."""
    written = (checkpoint / name for name in ("processor_config.json", "tokenizer_config.json"))
    return any(checkpoint.glob("chat_template*")) or any("chat_template" in object_of(file) for file in written)


def needs_striate(checkpoint: Path) -> bool:
    """Return whether the model's vision encoder is the built-in one, which transformers knows from striate alone."""
    folder = Path(base_of(checkpoint)) if is_adapter(checkpoint) else checkpoint
    vision = object_of(folder / "config.json").get("vision_config")
    return isinstance(vision, dict) and vision.get("model_type") == OWN_ENCODER
