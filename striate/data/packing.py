"""Packs several samples into one row: which ones, and the row's tensors and segment lengths."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from striate.data.encoding import Encoded
from striate.data.label_mask import IGNORED

SEGMENTS = "segments"
FILLER = "filler"
GRIDS = "image_grid_thw"
Batch = dict[str, torch.Tensor]


def first_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return which items are packed into one row of at most `budget` tokens: longest first, into the first with room.

    First-fit decreasing (Johnson, 1973) needs at most 11/9 of the fewest rows, and one. An item longer than the budget
    has a row of its own. Items keep their order within a row, and ties go by place: the same lengths give the same
    rows everywhere.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in _longest_first(lengths):
        row = next((row for row, left in enumerate(room) if left >= lengths[index]), None)
        if row is None:
            rows.append([])
            room.append(budget)
            row = len(rows) - 1
        rows[row].append(index)
        room[row] -= lengths[index]
    return [sorted(row) for row in rows]


def even_rows(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return which items are packed into one row: as many rows as `first_fit` needs, of lengths as even as possible.

    Longest first into the shortest row (Graham, 1969). Even rows differ less from step to step in their lengths, and
    the longest one, whose memory a step needs, is shorter. Where it would be longer, rows are those of `first_fit`.
    """
    fitted = first_fit(lengths, budget)
    rows: list[list[int]] = [[] for _ in fitted]
    filled = [0] * len(rows)
    for index in _longest_first(lengths):
        shortest = filled.index(min(filled))
        rows[shortest].append(index)
        filled[shortest] += lengths[index]
    longest = max((sum(lengths[index] for index in row) for row in fitted), default=0)
    return [sorted(row) for row in rows] if max(filled, default=0) <= longest else fitted


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))


def join_row(items: Sequence[Encoded]) -> Batch:
    """Return the token tensors (1, T, ...) of `items` one after the other, and their `segments` (n, 2).

    A segment is the number of tokens of a sample and of its picture grids, where the processor makes such grids. No
    token predicts the first one of the next sample, so that one has no label.
    """
    names = dict.fromkeys(name for item in items for name in item.tokens)
    row = {name: torch.cat([_aligned(item, name) for item in items], dim=1) for name in names}
    row["attention_mask"] = torch.ones_like(row["input_ids"])
    if "labels" in row:
        starts = torch.tensor([0, *(item.length for item in items)]).cumsum(0)[:-1]
        row["labels"][:, starts] = IGNORED
    grids = [item.pictures[GRIDS].shape[0] if GRIDS in item.pictures else 0 for item in items]
    row[SEGMENTS] = torch.tensor([[item.length, count] for item, count in zip(items, grids, strict=True)])
    return row


def filled_row(row: Batch, multiple: int) -> Batch:
    """Return `row` with its tokens filled up to a multiple; rows of few lengths can share more work.

    What fills it are samples of their own, without answers and none longer than the row's longest: copies of the last
    token. Their number is `filler`.
    """
    tokens = row["input_ids"].shape[1]
    rest = -tokens % multiple
    if not rest:
        return row
    aligned = {name: tensor for name, tensor in row.items() if name != SEGMENTS}
    longer = {name: _lengthened(tensor, rest) for name, tensor in aligned.items()}
    if "labels" in longer:
        longer["labels"][:, tokens:] = IGNORED
    most = int(row[SEGMENTS][:, 0].max())
    pieces = [most] * (rest // most) + [rest % most] * (rest % most > 0)
    segments = torch.cat([row[SEGMENTS], torch.tensor([[piece, 0] for piece in pieces])])
    return {**longer, SEGMENTS: segments, FILLER: torch.tensor(rest)}


def split_row(row: Batch, tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return `tensor` (1, T, ...), aligned with the tokens of `row`, cut into its samples."""
    return list(tensor.split(row[SEGMENTS][:, 0].tolist(), dim=1))


def _lengthened(tensor: torch.Tensor, more: int) -> torch.Tensor:
    """Return `tensor` (1, T, ...) with `more` copies of its last token."""
    return torch.cat([tensor, tensor[:, -1:].expand(-1, more, *tensor.shape[2:])], dim=1)


def _aligned(item: Encoded, name: str) -> torch.Tensor:
    """Return the item's tensor `name` (1, T, ...); zeros where it has none."""
    value = item.tokens.get(name)
    return torch.zeros_like(item.tokens["input_ids"]) if value is None else value
