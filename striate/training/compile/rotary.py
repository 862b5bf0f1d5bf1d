"""Rotary position embedding together with the product of queries, keys and values.

    y = [a c_1 - b s_1; b c_2 + a s_2] for each head [a; b], c = cos and s = sin of the token's position

(Su et al., arXiv 2104.09864). Written by a model as slices and concatenations, its gradient is joined with that of the
values by a kernel that reads everything several times over. Here two operators do it in one pass each.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from striate.training.compile.kernels import runs_triton
from striate.training.compile.lora_dropout import owner_of

# What attention is made of where nothing comes between its products and the rotation.
_CHILDREN = ["q_proj", "k_proj", "v_proj"]
_NAME, POSITIONS = "apply_rotary_pos_emb", "position_embeddings"


@torch.library.custom_op("striate::turn", mutates_args=())
def turn(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return queries and keys (B, T, heads x head size), rotated.

    Args:
        query: (B, T, heads x head size); its rows may be part of longer ones.
        key: (B, T, key-value heads x head size), likewise.
        cos: (B or 1, T, head size).
        sin: as `cos`.
    """
    found = query.new_empty(query.shape), key.new_empty(key.shape)
    if runs_triton(query):
        _launch((query, key), found, cos, sin, back=False)
    else:
        for one, other in zip(found, (query, key), strict=True):
            one.copy_(_plain(other, cos, sin, back=False))
    return found


@torch.library.custom_op("striate::turn_back", mutates_args=())
def turn_back(query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return the gradients of queries, keys and values before `turn`, side by side (B, T, all their columns)."""
    sizes = [one.shape[-1] for one in (query, key, value)]
    found = query.new_empty((*query.shape[:-1], sum(sizes)))
    parts = found.split(sizes, -1)
    if runs_triton(query):
        _launch((query, key, value), parts, cos, sin, back=True)
    else:
        parts[0].copy_(_plain(query, cos, sin, back=True))
        parts[1].copy_(_plain(key, cos, sin, back=True))
        parts[2].copy_(value)
    return found


@turn.register_fake
def _(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the results look like."""
    return query.new_empty(query.shape), key.new_empty(key.shape)


@turn_back.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return what the result looks like."""
    return query.new_empty((*query.shape[:-1], query.shape[-1] + key.shape[-1] + value.shape[-1]))


def _plain(hidden: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """Return `hidden` (B, T, heads x head size) rotated, or rotated back, by PyTorch's own operators."""
    heads = hidden.unflatten(-1, (-1, cos.shape[-1]))
    (a, b), (c, d), (s, t) = (one.chunk(2, -1) for one in (heads, cos.unsqueeze(-2), sin.unsqueeze(-2)))
    halves = (a * c + b * t, b * d - a * s) if back else (a * c - b * s, b * d + a * t)
    return torch.cat(halves, -1).flatten(-2)


def _launch(given: Sequence[Tensor], found: Sequence[Tensor], cos: Tensor, sin: Tensor, back: bool) -> None:
    """Run the kernel on rows of queries, keys and perhaps values."""
    from striate.training.compile.rotary_kernel import launch

    sources, targets = ([one.reshape(-1, one.shape[-1]) for one in side] for side in (given, found))
    turns = [one.reshape(-1, one.shape[-1]).contiguous() for one in (cos, sin)]
    launch(sources, targets, turns[0], turns[1], back)


def turning(layer: nn.Module, names: Sequence[str], kwargs: Mapping[str, Any]) -> nn.Module | None:
    """Return the attention module in which the products `names` meet nothing but the usual rotation, or None.

    Args:
        layer: a decoder layer.
        names: paths in it of linear layers, in the order of their calls.
        kwargs: what the layer is called with.
    """
    attention, positions = owner_of(layer, names, _CHILDREN), kwargs.get(POSITIONS)
    if attention is None or not isinstance(positions, tuple | list) or len(positions) != 2:
        return None
    children = {name for name, _ in attention.named_children()}
    size = getattr(attention, "head_dim", None)
    form = all(isinstance(one, Tensor) and one.dim() == 3 and one.shape[-1] == size for one in positions)
    kind: Any = type(attention)
    file = _file(kind)
    usual = form and children == {*_CHILDREN, "o_proj"} and file is not None and _usual(getattr(file, _NAME))
    return attention if usual else None


@contextmanager
def turned_before(attentions: Sequence[nn.Module]) -> Iterator[None]:
    """Let these modules take queries and keys as rotated already."""
    kinds: set[Any] = {type(attention) for attention in attentions}
    originals = {file: getattr(file, _NAME) for file in map(_file, kinds) if file}
    for file in originals:
        setattr(file, _NAME, _unchanged)
    try:
        yield
    finally:
        for file, original in originals.items():
            setattr(file, _NAME, original)


def _unchanged(query: Tensor, key: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    """Return what came in."""
    return query, key


@cache
def _file(kind: Any) -> ModuleType | None:
    """Return the source file in which an attention module of this class looks up its rotation, if it does."""
    own = inspect.unwrap(kind.forward)
    if _NAME not in own.__code__.co_names:
        return None
    file = sys.modules.get(own.__module__)
    return file if hasattr(file, _NAME) else None


@cache
def _usual(original: Callable[..., Any]) -> bool:
    """Return whether a model's rotation is the one above."""
    generator = torch.Generator().manual_seed(0)
    query, key, cos, sin = (torch.randn(2, count, 3, 8, generator=generator) for count in (4, 2, 1, 1))
    try:
        found = original(query, key, cos[:, 0], sin[:, 0])
    except (TypeError, RuntimeError, ValueError):
        return False
    rows = (one.transpose(1, 2).flatten(-2) for one in (query, key))
    return all(
        torch.allclose(one.transpose(1, 2).flatten(-2), _plain(other, cos[:, 0], sin[:, 0], back=False), atol=1e-5)
        for one, other in zip(found, rows, strict=True)
    )
