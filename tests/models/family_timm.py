"""A stand-in for the timm package, which some vision encoders need: one convolution of patches."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

WIDTH = 64
PATCH = 8


class TinyTimm(nn.Module):
    """A vision encoder that gives one vector for each patch, as a map or as a sequence."""

    def __init__(self, as_map: bool) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, kernel_size=PATCH, stride=PATCH)
        self.as_map = as_map

    def forward_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        hidden = self.patch_embed(pixel_values)
        return hidden if self.as_map else hidden.flatten(2).transpose(1, 2)

    def forward_head(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.flatten(2).mean(-1) if self.as_map else hidden.mean(1)


def stand_in() -> None:
    """Let transformers build vision encoders of timm without it; where timm is installed, nothing changes."""
    if find_spec("timm") is not None:
        return
    from transformers.models.timm_wrapper import modeling_timm_wrapper as wrapper

    wrapper.requires_backends = lambda *_: None
    wrapper.timm = SimpleNamespace(create_model=_create, __version__="0")


def _create(architecture: str, **kwargs: Any) -> TinyTimm:
    return TinyTimm(as_map="vit" not in architecture or "fastvit" in architecture)
