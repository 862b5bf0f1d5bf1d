"""Tiny LVLMs in which it is known which decoder layers move image tokens, and which ones let text read them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn


class _Layer(nn.Module):
    """A decoder layer that knows where the image tokens of the running batch are."""

    def __init__(self, inner: nn.Module, where: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self._where = where

    def image(self) -> torch.Tensor:
        return self._where["image"][..., None]


class Still(_Layer):
    """A layer whose image tokens leave as they came; text tokens read them as ever."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.where(self.image(), hidden_states, self.inner(hidden_states, *args, **kwargs))


class Blind(_Layer):
    """A layer whose image tokens leave as they came, and in which text tokens see zeros in their place."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        unseen = torch.where(self.image(), torch.zeros_like(hidden_states), hidden_states)
        return torch.where(self.image(), hidden_states, self.inner(unseen, *args, **kwargs))


def plant(model: Any, kind: type[_Layer], spared: Collection[int]) -> Any:
    """Return `model` after making every decoder layer but the `spared` ones of `kind`; in place."""
    where: dict[str, torch.Tensor] = {}

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        where["image"] = kwargs["input_ids"] == model.config.image_token_id

    model.register_forward_pre_hook(look, with_kwargs=True)
    layers = model.model.language_model.layers
    for index in range(len(layers)):
        if index not in spared:
            layers[index] = kind(layers[index], where)
    return model
