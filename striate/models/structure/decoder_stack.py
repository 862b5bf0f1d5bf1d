"""Finds the decoder layers of an LVLM, the lists beside them with one entry a layer, and the decoder's config."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from striate.errors import ModelError

# What families call the list of their decoder layers.
_LIST_NAMES = ("layers", "layer", "block", "blocks", "h")
_SEEING = ("vision", "visual", "image", "video", "audio")
# A config of encoder and decoder gives the decoder's depth a name of its own.
_DECODER_DEPTHS = ("decoder_layers", "num_decoder_layers")
DEPTH = "num_hidden_layers"


@dataclass(frozen=True)
class Stack:
    """The list `name` of the module `holder` holds the decoder layers."""

    holder: Any
    name: str

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, first to last."""
        return getattr(self.holder, self.name)

    @property
    def companions(self) -> dict[str, nn.ModuleList]:
        """Lists beside the stack with one entry for each decoder layer, such as Idefics' gated cross-attention."""
        lists = {name: child for name, child in self.holder.named_children() if isinstance(child, nn.ModuleList)}
        return {name: child for name, child in lists.items() if name != self.name and len(child) == len(self.layers)}


def unwrap(model: nn.Module) -> Any:
    """Return the transformers model inside `model`: without PEFT, `torch.compile` or data-parallel wrappers."""
    current: Any = model
    while True:
        if hasattr(current, "peft_config") and callable(getattr(current, "get_base_model", None)):
            current = current.get_base_model()
        elif isinstance(current, nn.DataParallel | nn.parallel.DistributedDataParallel):
            current = current.module
        elif "_orig_mod" in current._modules:
            current = current._orig_mod
        else:
            return current


def name_of(model: nn.Module) -> str:
    """Return what errors call the model: its class, and its path where it has one."""
    core = unwrap(model)
    path = getattr(getattr(core, "config", None), "name_or_path", "")
    return f"{type(core).__name__} ({path})" if path else type(core).__name__


def find_stack(model: nn.Module) -> Stack:
    """Return the decoder stack that the model's accessor leads to.

    Raises:
        ModelError: the model has no such stack.
    """
    core = unwrap(model)
    decoder: Any = core
    # Llama4's accessor returns a causal LM: its stack is one step deeper.
    for _ in range(3):
        decoder = decoder.get_decoder() if callable(getattr(decoder, "get_decoder", None)) else decoder
        if isinstance(getattr(decoder, "layers", None), nn.ModuleList):
            return Stack(decoder, "layers")
        decoder = getattr(decoder, "model", decoder)
    stack = next(_lists_below(decoder), None)
    if stack is not None:
        return stack
    raise ModelError(
        f"{name_of(model)} has no decoder stack that `get_decoder()` leads to",
        "a vision-language model whose language model has a list of decoder layers",
        "see `striate ls families` for the families known to work",
    )


def find_decoder(model: nn.Module) -> Any:
    """Return the module that holds the decoder stack.

    Raises:
        ModelError: the model has no such module.
    """
    return find_stack(model).holder


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the decoder layers of the language model, first to last; works on PEFT-wrapped models.

    Raises:
        ModelError: the model has no decoder stack.
    """
    return find_stack(model).layers


def decoder_config(model: nn.Module) -> Any:
    """Return the part of the model's config that sizes the decoder, never a copy: editing it edits the model's."""
    config = unwrap(model).config
    text = config.get_text_config(decoder=True)
    parts = list(config_parts(config))
    if any(part is text for part in parts):
        return text
    # Of a flat config for encoder and decoder, the accessor makes a copy with the decoder's values.
    return next((part for part in parts if type(part) is type(text)), text)


def depth_field(config: Any) -> str:
    """Return the name of the config field that counts decoder layers."""
    own = next((name for name in _DECODER_DEPTHS if hasattr(config, name)), None)
    return config.attribute_map.get(own or DEPTH, own or DEPTH)


def _lists_below(root: nn.Module) -> Iterator[Stack]:
    """Yield lists of layers below `root`, those of a decoder first, leaving out vision and audio encoders."""
    stacks: list[tuple[bool, Stack]] = []
    for path, module in root.named_modules():
        parts = path.split(".")
        inside_list = any(part.isdigit() for part in parts)
        if inside_list or any(word in part for word in _SEEING for part in parts):
            continue
        lists = [name for name in _LIST_NAMES if isinstance(getattr(module, name, None), nn.ModuleList)]
        stacks.extend(("decoder" not in path, Stack(module, name)) for name in lists[:1])
    yield from (stack for _, stack in sorted(stacks, key=lambda entry: entry[0]))


def config_parts(config: Any) -> Iterator[Any]:
    """Yield `config` and every config inside it."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from config_parts(value)
