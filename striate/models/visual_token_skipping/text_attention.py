"""Attention in layers that image tokens skip: of variable length where the ends of runs of text are given."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from striate.models.interventions.varlen_attention import varlen_attention_forward

_NAME, _PLAIN = "striate_text_rows", "sdpa"
Replaced = list[tuple[nn.Module, str, PretrainedConfig]]


def text_attention(module: nn.Module, *tensors: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """Return attention in transformers' form: of variable length where `cu_seq_lens_q` is given, else PyTorch's."""
    if kwargs.get("cu_seq_lens_q") is not None:
        return varlen_attention_forward(module, *tensors, **kwargs)
    plain: tuple[Tensor, None] = ALL_ATTENTION_FUNCTIONS[_PLAIN](module, *tensors, **kwargs)
    return plain


def use_text_attention(layers: list[nn.Module]) -> Replaced:
    """Let scaled dot-product attention of these layers be `text_attention`; return the configs that said which."""
    copies: dict[int, PretrainedConfig] = {}
    replaced: Replaced = []
    for module in (module for layer in layers for module in layer.modules()):
        for name, config in list(vars(module).items()):
            known = isinstance(config, PretrainedConfig) and config._attn_implementation == _PLAIN
            # A config of several parts would hand the choice down to those that others share.
            if known and not config.sub_configs:
                if id(config) not in copies:
                    copies[id(config)] = copy.copy(config)
                    copies[id(config)]._attn_implementation = _NAME
                setattr(module, name, copies[id(config)])
                replaced.append((module, name, config))
    return replaced


def restore_attention(replaced: Replaced) -> None:
    """Undo `use_text_attention`."""
    for module, name, config in replaced:
        setattr(module, name, config)


AttentionInterface.register(_NAME, text_attention)
