"""Triton kernels of causal attention for samples that fit into one tile: one launch forward, one backward.

Both passes hold a sample's whole matrix of weights for one group of heads, so nothing of the softmax is kept, no
partial sums are added up afterwards, and heads that share keys add their gradients on the way. The compiler of these
functions reads no return annotations.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _span(ends: tl.tensor, length: tl.tensor, PACKED: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN202
    """Return the first token and the number of tokens of this program's sample."""
    sample = tl.program_id(0)
    if PACKED:
        start = tl.load(ends + sample)
        first = start.to(tl.int64)
        count = tl.load(ends + sample + 1) - start
    else:
        first = sample.to(tl.int64) * length
        count = length
    return first, count


@triton.jit
def _weights(  # type: ignore[no-untyped-def]  # noqa: ANN202
    query: tl.tensor, key: tl.tensor, count: tl.tensor, scale: tl.tensor, T: tl.constexpr
):
    """Return the softmax weights (T, T) of one head in float32; rows behind the sample are finite."""
    row, column = tl.arange(0, T), tl.arange(0, T)
    scores = tl.dot(query, tl.trans(key)) * (scale * _LOG2_E)
    seen = (column[None, :] <= row[:, None]) & (column[None, :] < count)
    scores = tl.where(seen, scores, float("-inf"))
    powers = tl.exp2(scores - tl.max(scores, 1)[:, None])
    return powers / tl.sum(powers, 1)[:, None]


@triton.jit
def forward_kernel(  # type: ignore[no-untyped-def]  # noqa: ANN201
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    output: tl.tensor,
    ends: tl.tensor,
    length: tl.tensor,
    scale: tl.tensor,
    query_token: tl.tensor,
    query_head: tl.tensor,
    key_token: tl.tensor,
    key_head: tl.tensor,
    value_token: tl.tensor,
    value_head: tl.tensor,
    output_token: tl.tensor,
    GROUP: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
    PACKED: tl.constexpr,
):
    """Write the attention of one sample's heads that share keys, (tokens, heads, D)."""
    first, count = _span(ends, length, PACKED)
    head = tl.program_id(1)
    token, column = tl.arange(0, T), tl.arange(0, D)
    here, inside = first + token, token[:, None] < count
    keys = tl.load(key + here[:, None] * key_token + head * key_head + column[None, :], mask=inside, other=0.0)
    values = tl.load(value + here[:, None] * value_token + head * value_head + column[None, :], mask=inside, other=0.0)
    for member in tl.static_range(GROUP):
        mine = head * GROUP + member
        queries = tl.load(
            query + here[:, None] * query_token + mine * query_head + column[None, :], mask=inside, other=0.0
        )
        weights = _weights(queries, keys, count, scale, T)
        found = tl.dot(weights.to(values.dtype), values)
        tl.store(
            output + here[:, None] * output_token + mine * D + column[None, :],
            found.to(output.dtype.element_ty),
            mask=inside,
        )


@triton.jit
def backward_kernel(  # type: ignore[no-untyped-def]  # noqa: ANN201
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    gradient: tl.tensor,
    query_gradient: tl.tensor,
    key_gradient: tl.tensor,
    value_gradient: tl.tensor,
    ends: tl.tensor,
    length: tl.tensor,
    scale: tl.tensor,
    query_token: tl.tensor,
    query_head: tl.tensor,
    key_token: tl.tensor,
    key_head: tl.tensor,
    value_token: tl.tensor,
    value_head: tl.tensor,
    gradient_token: tl.tensor,
    gradient_head: tl.tensor,
    wide_token: tl.tensor,
    narrow_token: tl.tensor,
    GROUP: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
    PACKED: tl.constexpr,
):
    """Write the gradients of one sample's queries, keys and values, each (tokens, heads, D)."""
    first, count = _span(ends, length, PACKED)
    head = tl.program_id(1)
    token, column = tl.arange(0, T), tl.arange(0, D)
    here, inside = first + token, token[:, None] < count
    keys = tl.load(key + here[:, None] * key_token + head * key_head + column[None, :], mask=inside, other=0.0)
    values = tl.load(value + here[:, None] * value_token + head * value_head + column[None, :], mask=inside, other=0.0)
    to_keys = tl.zeros((T, D), dtype=tl.float32)
    to_values = tl.zeros((T, D), dtype=tl.float32)
    for member in tl.static_range(GROUP):
        mine = head * GROUP + member
        queries = tl.load(
            query + here[:, None] * query_token + mine * query_head + column[None, :], mask=inside, other=0.0
        )
        given = tl.load(
            gradient + here[:, None] * gradient_token + mine * gradient_head + column[None, :], mask=inside, other=0.0
        )
        weights = _weights(queries, keys, count, scale, T)
        to_values += tl.dot(tl.trans(weights.to(given.dtype)), given)
        to_weights = tl.dot(given, tl.trans(values))
        to_scores = weights * (to_weights - tl.sum(weights * to_weights, 1)[:, None]) * scale
        to_scores = to_scores.to(keys.dtype)
        tl.store(
            query_gradient + here[:, None] * wide_token + mine * D + column[None, :],
            tl.dot(to_scores, keys).to(query_gradient.dtype.element_ty),
            mask=inside,
        )
        to_keys += tl.dot(tl.trans(to_scores), queries)
    place = here[:, None] * narrow_token + head * D + column[None, :]
    tl.store(key_gradient + place, to_keys.to(key_gradient.dtype.element_ty), mask=inside)
    tl.store(value_gradient + place, to_values.to(value_gradient.dtype.element_ty), mask=inside)
