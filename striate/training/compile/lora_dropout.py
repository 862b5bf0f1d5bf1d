"""LoRA's forward pass in a form that a compiler fuses: dropout from a counter, no mask kept, no cast written out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from striate.training.compile.dropped import narrow_products


class FastLora(nn.Module):
    """One linear layer with its adapter: y = W x + alpha / r * B A dropout(x), as PEFT's, with the same names.

    LoRA: Hu et al., arXiv 2106.09685. The distribution of the dropout is PEFT's (every module draws a mask of its
    own), its random numbers are not. Number formats are those of PEFT under autocast.

    Attributes:
        keys: a row's random numbers (B, T) for the dropout of this call; set from outside.
        shared: the product that the layer is part of, if any (`training.merged`), and its place in it.
    """

    keys: torch.Tensor
    shared: Any = None
    place = 0

    def __init__(self, module: Any) -> None:
        """Take the parts of a PEFT linear layer: nothing is copied."""
        super().__init__()
        (self.adapter,) = module.active_adapters
        self.base_layer = module.base_layer
        self.lora_A, self.lora_B = module.lora_A, module.lora_B
        self.scaling = float(module.scaling[self.adapter])
        self.probability = float(getattr(module.lora_dropout[self.adapter], "p", 0.0))
        self.training = module.training
        # A buffer, so that a functional call replaces it.
        self.register_buffer("keys", torch.zeros((), dtype=torch.int32, device="meta"), persistent=False)

    @property
    def drops(self) -> bool:
        """Whether values are dropped now."""
        return bool(self.training and self.probability)

    @property
    def first(self) -> nn.Linear:
        """The layer A, (r, in)."""
        found: nn.Linear = self.lora_A[self.adapter]
        return found

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the layer's output for `hidden` (B, T, in)."""
        if self.shared is not None:
            part: torch.Tensor = self.shared.part(self.place, hidden)
            return part
        result = self.base_layer(hidden)
        return (result + linear(self.narrow(hidden), self.wide(hidden))).to(result.dtype)

    def narrow(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return A dropout(x), (B, T, r), still to be scaled by 1 / (1 - probability)."""
        if not self.drops:
            return linear(self.cast(hidden), self.first.weight)
        return narrow([self], hidden)[0]

    def wide(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return B with all scales in it, (out, r): scaling the update would write it and its gradient anew."""
        scaling = self.scaling / (1 - self.probability) if self.drops else self.scaling
        return self.cast(self.lora_B[self.adapter].weight * scaling, hidden.device)

    def cast(self, tensor: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
        """Return `tensor` in the number format of the adapter's products."""
        kind = (device or tensor.device).type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.first.weight.dtype
        return tensor.to(dtype)


def narrow(adapters: Sequence[FastLora], hidden: torch.Tensor) -> list[torch.Tensor]:
    """Return A dropout(x), (B, T, r), of adapters that drop alike, each with a mask of its own; not scaled yet."""
    keys, factors = [one.keys for one in adapters], [one.cast(one.first.weight) for one in adapters]
    return narrow_products(adapters[0].cast(hidden), keys, factors, adapters[0].probability)


def why_not(module: nn.Module) -> str:
    """Return why a module of PEFT can't be a `FastLora`, or nothing; any other module can stay as it is."""
    if not hasattr(module, "lora_A"):
        return ""
    adapters: Any = module
    if type(getattr(adapters, "base_layer", None)) is not nn.Linear:
        return "an adapter on something else than a plain linear layer"
    if len(adapters.active_adapters) != 1 or adapters.disable_adapters or adapters.merged:
        return "several adapters, or a merged or disabled one"
    if adapters.lora_variant or any(adapters.lora_bias.values()) or adapters.fan_in_fan_out:
        return "a variant of LoRA"
    return ""


def adapt(template: nn.Module) -> list[FastLora]:
    """Return the `FastLora` modules put in place of PEFT's linear layers inside `template`, in order."""
    found = [name for name, module in template.named_modules() if hasattr(module, "lora_A")]
    fast = []
    for name in found:
        parent, _, child = name.rpartition(".")
        fast.append(FastLora(template.get_submodule(name)))
        setattr(template.get_submodule(parent), child, fast[-1])
    return fast


def owner_of(layer: nn.Module, names: Sequence[str], wanted: Sequence[str]) -> nn.Module | None:
    """Return the module in `layer` that the linear layers at the paths `names` belong to, if it calls them `wanted`.

    A path may be that of a linear layer below its adapter.
    """
    places = [name.removesuffix(".base_layer").rpartition(".") for name in names]
    return layer.get_submodule(places[0][0]) if [name for *_, name in places] == list(wanted) else None
