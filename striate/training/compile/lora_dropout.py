"""LoRA dropout whose mask is recomputed from random keys in the backward pass, never stored.

Plain `nn.Dropout` keeps a mask and a dropped copy of its input for every adapter: 5 GiB at LLaVA-1.5-7B's shape (LoRA
r 128 on 25% of the layers, 8 x 776 tokens). Here a compiled layer keeps one 32-bit key a token and adapter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from striate.training.precision import HALF

# The two multipliers of a 32-bit integer finaliser of low bias (github.com/skeeto/hash-prospector), as signed numbers.
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B - 2**32
# 2**32 over the golden ratio, odd: neighbouring columns begin far apart.
_STRIDE = 0x9E3779B9 - 2**32


class _Drawn:
    """The keys of the layer that runs, int32 (dropouts, B, T).

    No attribute of a module: those count as being at one address for good, and a CUDA graph is recorded anew for each
    other one.
    """

    keys: Tensor | None = None


_DRAWN = _Drawn()


def keep_mask(keys: Tensor, columns: int, probability: float) -> Tensor:
    """Return which values dropout keeps, bool (..., columns), each with probability 1 - `probability`.

    Value c of a row is kept when hash(key + c x stride) lies in the upper share of the 32-bit numbers. The hash is a
    bijection, so over random keys every value is uniform, to 2^-32; the same keys give the same mask again.

    Args:
        keys: int32 (...), one random number a row, over the whole range of the type.
        columns: values a row.
        probability: of dropping a value.
    """
    counter = torch.arange(columns, device=keys.device, dtype=torch.int32) * _STRIDE
    bits = keys.unsqueeze(-1) + counter
    # Shifts of signed numbers bring copies of the sign in; the mask takes them away.
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * _FIRST
    bits = (bits ^ ((bits >> 15) & 0x1FFFF)) * _SECOND
    return bits >= round(probability * 2**32) - 2**31


class KeyedDropout(nn.Module):
    """Dropout (Srivastava et al. 2014) in the number format of the product that follows, its mask from random keys.

    Inputs of other rows than the layer's, such as a vision encoder's in cross-attention, are dropped as torch does.

    Attributes:
        place: which of the keys that `draw_keys` makes before each call of its layer are its own, one a row; none
            outside a layer. Drawn outside the graph, they are the same with and without the compiler, and for the
            backward pass.
    """

    place: int | None = None

    def __init__(self, p: float, scale: float = 1.0) -> None:
        """Drop each value with probability `p`, and multiply the rest by `scale`."""
        super().__init__()
        self.p, self.scale = p, scale
        self._unkeyed = False

    @property
    def drops(self) -> bool:
        """Whether values are dropped now."""
        return bool(self.training and self.p)

    @property
    def unkeyed(self) -> bool:
        """Whether an input had other rows than the keys, so that values were dropped by torch's random numbers."""
        return self._unkeyed

    def forward(self, x: Tensor) -> Tensor:
        """Return `scale` times `x` (..., columns); while training with values dropped and the rest over 1 - p."""
        if not self.drops:
            return x if self.scale == 1 else x * self.scale
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        drawn = _DRAWN.keys
        if self.place is None or drawn is None or drawn.shape[1:].numel() != x.shape[:-1].numel():
            if not torch.compiler.is_compiling():
                self._unkeyed = True
            return nn.functional.dropout(x.to(dtype), self.p) * self.scale
        keys = drawn[self.place].reshape(x.shape[:-1])
        how: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        dropped: Tensor = checkpoint(_drop, x, keys, self.p, self.scale / (1 - self.p), dtype, **how)
        return dropped


def keyed_dropouts(module: nn.Module) -> list[KeyedDropout]:
    """Return the dropouts inside `module` that need keys."""
    return [child for child in module.modules() if isinstance(child, KeyedDropout)]


def draw_keys(dropouts: Sequence[KeyedDropout], hidden: Tensor) -> None:
    """Draw new keys for the dropouts of a layer, for its call on `hidden` (B, T, D)."""
    if any(dropout.drops for dropout in dropouts):
        for place, dropout in enumerate(dropouts):
            dropout.place = place
        shape = (len(dropouts), *hidden.shape[:-1])
        _DRAWN.keys = torch.randint(-(2**31), 2**31, shape, dtype=torch.int32, device=hidden.device)


def _drop(x: Tensor, keys: Tensor, p: float, scale: float, dtype: torch.dtype) -> Tensor:
    # Scaled last: scaled first, compilers keep what is scaled.
    return torch.where(keep_mask(keys, x.shape[-1], p), x, 0.0).to(dtype) * scale


@contextmanager
def keyed_dropout(model: nn.Module) -> Iterator[None]:
    """Let the adapters of `model` drop values by `KeyedDropout` for a while, whatever variant of LoRA they are.

    Plain LoRA's alpha / r goes into the dropout too: a product of PEFT's wide results with it would be written once
    more in the backward pass.
    """
    adapters: list[Any] = [
        module for module in model.modules() if isinstance(getattr(module, "lora_dropout", None), nn.ModuleDict)
    ]
    before = [
        (module, dict(module.lora_dropout), dict(module.scaling), module.cast_input_dtype_enabled)
        for module in adapters
    ]
    half = any(parameter.dtype in HALF for parameter in model.parameters())
    for module, dropouts, scaling, casts in before:
        # Half-precision models train under autocast, which casts products: a float32 copy of the input is not needed.
        module.cast_input_dtype_enabled = casts and not half
        for name, dropout in dropouts.items():
            if type(dropout) is nn.Dropout:
                plain = name not in module.lora_variant
                keyed = KeyedDropout(dropout.p, scaling[name] if plain else 1.0).train(dropout.training)
                module.lora_dropout[name] = keyed
                module.scaling[name] = 1.0 if plain else scaling[name]
    try:
        yield
    finally:
        _DRAWN.keys = None
        for module, dropouts, scaling, casts in before:
            module.cast_input_dtype_enabled = casts
            module.scaling.update(scaling)
            for name, dropout in dropouts.items():
                module.lora_dropout[name] = dropout.train(module.training)
