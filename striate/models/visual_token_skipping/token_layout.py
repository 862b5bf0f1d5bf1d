"""Where the text and image tokens of a batch are: worked out on the CPU once a batch, only read by the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

# Keys that several runs of text see are held once for each run: with more than this share of all, a mask is cheaper.
_MOST_KEYS = 1.5
# The least upper bound of sequence lengths; every other one is a power of 2, since each is compiled.
_LEAST_BOUND = 256


@dataclass(frozen=True)
class TokenRows:
    """Text tokens, and the tokens whose keys they see, as rows of a batch flattened to M = B T tokens.

    Attributes:
        text: the text tokens, (R, X); -1 where a row has fewer.
        text_back: the place of each of the M tokens in the flat `text`, or -1, (1, M).
        keys: the tokens whose keys and values are made, (1, K); None for all M, in R rows.
        keys_back: the places of each of the M tokens in `keys`, -1 where fewer than C, a power of 2, (C, M); or (0, M).
        varlen: what transformers hands to variable-length attention; None where a mask says which keys a query sees.
    """

    text: Tensor
    text_back: Tensor
    keys: Tensor | None
    keys_back: Tensor
    varlen: Mapping[str, Tensor | int] | None = None


@dataclass(frozen=True)
class TokenLayout:
    """Two forms of the rows of a batch (B, T).

    A run is text without a break within one sample. Its queries see all keys of its sample up to the run's end, each
    query those up to itself: causal attention of as many queries as the run has and as many keys as stand before its
    end. So runs are sequences of variable-length attention, one after the other, and so are their keys.

    Attributes:
        image: which tokens are image tokens, (B, T, 1).
        grid: the text tokens of each sample, (B, X), which see the keys of all by a mask.
        runs: the runs of text, (1, N); None where they hold too many keys twice.
        packed: whether a row holds several samples: no mask keeps these apart, so only `runs` fit.
    """

    image: Tensor
    grid: TokenRows
    runs: TokenRows | None
    packed: bool

    @classmethod
    def of(cls, image_BT: Tensor, device: torch.device, lengths: Sequence[int] | None = None) -> TokenLayout | None:
        """Return the layout of a batch on `device`, copied there without waiting; None where it has no image tokens.

        Args:
            image_BT: which tokens are image tokens, on the CPU.
            device: where the layers run.
            lengths: tokens of each sample of a packed row (1, T); None where every row is a sample.
        """
        if not bool(image_BT.any()):
            return None
        batch, length = image_BT.shape
        total = batch * length
        parts = {"image": image_BT.long(), "grid": _grid(~image_BT)}
        parts["grid_back"] = _inverse(parts["grid"].flatten(), total)
        runs = _runs(image_BT.flatten(), lengths or [length] * batch)
        joined = lengths is not None or runs["keys"].numel() <= _MOST_KEYS * total
        if joined:
            parts |= runs
            parts["text_back"] = _inverse(runs["text"][0], total)
            parts["keys_back"] = _inverse(runs["keys"][0], total, several=True)
        sent = _sent(parts, device)
        grid = TokenRows(sent["grid"], sent["grid_back"], None, sent["grid_back"][:0])
        return cls(sent["image"].bool()[..., None], grid, _joined(sent, runs) if joined else None, lengths is not None)


def _joined(sent: Mapping[str, Tensor], runs: Mapping[str, Tensor]) -> TokenRows:
    """Return the runs of text; the names of their ends are those of transformers' `FlashAttentionKwargs`."""
    varlen: dict[str, Tensor | int] = {
        "cu_seq_lens_q": sent["ends"].to(torch.int32),
        "cu_seq_lens_k": sent["key_ends"].to(torch.int32),
        "max_length_q": _bound(runs["ends"]),
        "max_length_k": _bound(runs["key_ends"]),
    }
    return TokenRows(sent["text"], sent["text_back"], sent["keys"], sent["keys_back"], varlen)


def _runs(image_M: Tensor, lengths: Sequence[int]) -> dict[str, Tensor]:
    """Return text tokens (1, N), keys (1, K) and the ends of both of the runs among samples of these lengths."""
    starts = torch.tensor([0, *accumulate(lengths)])
    sample_M = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    begins = torch.cat([torch.ones(1, dtype=torch.bool), image_M[:-1] | sample_M.diff().bool()])
    text = (~image_M).nonzero()[:, 0]
    counts = torch.bincount((begins & ~image_M).cumsum(0)[text] - 1)
    ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    last = text[ends[1:] - 1]
    first = starts[sample_M[last]]
    key_counts = last + 1 - first
    key_ends = torch.cat([counts.new_zeros(1), key_counts.cumsum(0)])
    offset = torch.repeat_interleave(first - key_ends[:-1], key_counts)
    keys = torch.arange(int(key_ends[-1])) + offset
    return {"text": text[None], "keys": keys[None], "ends": ends, "key_ends": key_ends}


def _grid(text_BT: Tensor) -> Tensor:
    """Return the text tokens of each sample as places in the flat batch, in order, filled up with -1, (B, X)."""
    places = torch.arange(text_BT.numel()).view_as(text_BT).masked_fill(~text_BT, text_BT.numel())
    places = places.sort(1).values[:, : int(text_BT.sum(1).max())]
    return places.masked_fill(places == text_BT.numel(), -1)


def _inverse(rows: Tensor, length: int, several: bool = False) -> Tensor:
    """Return the places of each of `length` tokens in `rows`, (C, length), -1 where it is there fewer times.

    C is 1, or where tokens may be there `several` times one of few numbers: each is compiled.
    """
    places = torch.arange(len(rows))[rows >= 0]
    ordered, order = rows[rows >= 0].sort(stable=True)
    counts = torch.bincount(ordered, minlength=length)
    nth = torch.arange(len(ordered)) - (counts.cumsum(0) - counts)[ordered]
    most = max(2, 1 << (int(counts.max()) - 1).bit_length()) if several else 1
    inverse = torch.full((most, length), -1)
    inverse[nth, ordered] = places[order]
    return inverse


def _bound(ends: Tensor) -> int:
    """Return an upper bound of the lengths between `ends`."""
    return max(_LEAST_BOUND, 1 << (int(ends.diff().max()) - 1).bit_length())


def _sent(parts: Mapping[str, Tensor], device: torch.device) -> dict[str, Any]:
    """Return the parts on `device`, in one copy that the host does not wait for."""
    # Compiled code wants tensors to begin at multiples of 16 bytes.
    rooms = [part.numel() + part.numel() % 2 for part in parts.values()]
    joined = torch.zeros(sum(rooms), dtype=torch.long, pin_memory=device.type == "cuda")
    for part, room in zip(parts.values(), joined.split(rooms), strict=True):
        room[: part.numel()] = part.flatten()
    pieces = joined.to(device, non_blocking=True).split(rooms)
    return {
        name: piece[: part.numel()].view(part.shape) for (name, part), piece in zip(parts.items(), pieces, strict=True)
    }
