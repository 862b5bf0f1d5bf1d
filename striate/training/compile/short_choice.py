"""Whether short samples attend by `short_attention`: found out on this card, at the model's own shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from striate.training.compile.short_attention import LONGEST, fits, short_attention

# Tokens of the samples that are timed, and how much faster the kernels must be: noise must not decide.
TOKENS, MARGIN = 96, 0.85
_NAME, _TIMES, _WAIT = "sdpa", 20, 50_000_000
_CLOSE = 2e-2
_active = [False]
Way = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Say = Callable[[str], None]


def short_active() -> bool:
    """Return whether short samples attend by `short_attention` now."""
    return _active[0]


@contextmanager
def short_samples(heads: int, shared: int, size: int, rows: int, say: Say) -> Iterator[None]:
    """Let samples of at most `LONGEST` tokens attend by `short_attention` in the block, if that is right and faster.

    Args:
        heads: query heads.
        shared: key-value heads.
        size: of a head.
        rows: samples that are timed together.
        say: told in one line which way was faster, or why the kernels are not used.
    """
    reason = _reason(heads, shared, size, rows, say)
    if reason:
        say(f"short samples attend by PyTorch's kernels: {reason}")
        yield
        return
    original = ALL_ATTENTION_FUNCTIONS[_NAME]
    ALL_ATTENTION_FUNCTIONS[_NAME] = _attention(original)
    _active[0] = True
    try:
        yield
    finally:
        _active[0] = False
        if original is type(ALL_ATTENTION_FUNCTIONS)._global_mapping[_NAME]:
            del ALL_ATTENTION_FUNCTIONS[_NAME]
        else:
            ALL_ATTENTION_FUNCTIONS[_NAME] = original


def _attention(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return an attention function of transformers that leaves all but short causal samples to `original`."""

    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        alike = query.shape[2] == key.shape[2] and attention_mask is None and not dropout
        if causal and alike and fits(query, value, query.shape[2]):
            scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
            return short_attention(query, key, value, None, scale), None
        how: dict[str, Any] = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **kwargs}
        found: tuple[torch.Tensor, None] = original(module, query, key, value, attention_mask, **how)
        return found

    return attention


def _reason(heads: int, shared: int, size: int, rows: int, say: Say) -> str:
    """Return why the kernels are not to be used, or nothing."""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    tensors = [
        torch.randn(rows, TOKENS, count, size, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
        for count in (heads, shared, shared)
    ]
    if not fits(tensors[0], tensors[2], TOKENS):
        return f"heads of {size} values, or no Triton"
    try:
        ours, theirs = _results(_ours, tensors), _results(_theirs, tensors)
        for found, expected in zip(ours, theirs, strict=True):
            if not float((found.float() - expected.float()).norm() / expected.float().norm()) < _CLOSE:
                return "this card's results differ"
        mine, other = _milliseconds(_ours, tensors), _milliseconds(_theirs, tensors)
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
    line = f"{mine:.3f} ms against {other:.3f} ms of PyTorch's, both ways, {rows} samples of {TOKENS} tokens"
    if mine > MARGIN * other:
        return line
    say(f"samples of at most {LONGEST} tokens attend by a kernel of their own: {line}")
    return ""


def _ours(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return (B, T, heads, head size) by `short_attention`."""
    return short_attention(query, key, value, None, query.shape[-1] ** -0.5)


def _theirs(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return the same by PyTorch's operator."""
    out = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1])
    return out.transpose(1, 2)


def _results(way: Way, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the output and the gradients."""
    with torch.enable_grad(), torch.autocast(tensors[0].device.type, enabled=False):
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        output = way(*leaves)
        return [output, *torch.autograd.grad(output, leaves, tensors[0].transpose(1, 2))]


def _milliseconds(way: Way, tensors: list[torch.Tensor]) -> float:
    """Return what both passes take on the device; it waits first, so that all work is there when it begins."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _results(way, tensors)
    torch.cuda._sleep(_WAIT)
    begin.record()
    for _ in range(_TIMES):
        _results(way, tensors)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / _TIMES
