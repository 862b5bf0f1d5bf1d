"""A Triton kernel that rotates heads of queries and keys forth or back, one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

# Values of one program.
_VALUES = 4096


@triton.jit
def turn_kernel(  # type: ignore[no-untyped-def]  # noqa: ANN201
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    to_query: tl.tensor,
    to_key: tl.tensor,
    to_value: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    rows: tl.tensor,
    positions: tl.tensor,
    query_row: tl.tensor,
    key_row: tl.tensor,
    value_row: tl.tensor,
    to_query_row: tl.tensor,
    to_key_row: tl.tensor,
    to_value_row: tl.tensor,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
    BACK: tl.constexpr,
):
    """Write one head of some rows: of queries and keys rotated, of values as it is."""
    head = tl.program_id(1)
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, HALF)
    inside = (row < rows)[:, None] & (column < D // 2)[None, :]
    if head < QUERIES:
        source = query + head * D + row[:, None] * query_row + column[None, :]
        target = to_query + head * D + row[:, None] * to_query_row + column[None, :]
    elif head < QUERIES + KEYS:
        source = key + (head - QUERIES) * D + row[:, None] * key_row + column[None, :]
        target = to_key + (head - QUERIES) * D + row[:, None] * to_key_row + column[None, :]
    else:
        source = value + (head - QUERIES - KEYS) * D + row[:, None] * value_row + column[None, :]
        target = to_value + (head - QUERIES - KEYS) * D + row[:, None] * to_value_row + column[None, :]
    first = tl.load(source, mask=inside, other=0.0)
    second = tl.load(source + D // 2, mask=inside, other=0.0)
    if head < QUERIES + KEYS:
        place = (row % positions)[:, None] * D + column[None, :]
        first_cos = tl.load(cos + place, mask=inside, other=0.0).to(tl.float32)
        second_cos = tl.load(cos + place + D // 2, mask=inside, other=0.0).to(tl.float32)
        first_sin = tl.load(sin + place, mask=inside, other=0.0).to(tl.float32)
        second_sin = tl.load(sin + place + D // 2, mask=inside, other=0.0).to(tl.float32)
        a, b = first.to(tl.float32), second.to(tl.float32)
        if BACK:
            first = (a * first_cos + b * second_sin).to(first.dtype)
            second = (b * second_cos - a * first_sin).to(second.dtype)
        else:
            first = (a * first_cos - b * first_sin).to(first.dtype)
            second = (b * second_cos + a * second_sin).to(second.dtype)
    tl.store(target, first, mask=inside)
    tl.store(target + D // 2, second, mask=inside)


def launch(given: Sequence[Tensor], found: Sequence[Tensor], cos: Tensor, sin: Tensor, back: bool) -> None:
    """Rotate rows (N, heads x head size) of queries and keys into `found`, and copy those of values if they are there.

    Args:
        given: queries, keys, perhaps values.
        found: where results go, of the same forms.
        cos: (positions, head size); row n is at position n modulo their number.
        sin: as `cos`.
        back: whether to rotate back.
    """
    size = cos.shape[-1]
    heads = [one.shape[1] // size for one in given]
    half = triton.next_power_of_2(size // 2)
    rows = max(1, _VALUES // (2 * half))
    sources = [one if one.stride(1) == 1 else one.contiguous() for one in given]
    fill = [0] * (3 - len(given))
    turn_kernel[(triton.cdiv(given[0].shape[0], rows), sum(heads))](
        *sources,
        *(sources[0] for _ in fill),
        *found,
        *(found[0] for _ in fill),
        cos,
        sin,
        given[0].shape[0],
        cos.shape[0],
        *(one.stride(0) for one in sources),
        *fill,
        *(one.stride(0) for one in found),
        *fill,
        QUERIES=heads[0],
        KEYS=heads[1],
        D=size,
        HALF=half,
        ROWS=rows,
        BACK=back,
    )
