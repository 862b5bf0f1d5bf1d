"""Long work in batches of similar length, that halve themselves when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from striate.errors import ModelError

Entry = TypeVar("Entry")
Result = TypeVar("Result")


def run_in_batches(
    entries: Sequence[Entry],
    run: Callable[[list[Entry]], list[Result]],
    *,
    length: Callable[[Entry], Any],
    rows: Callable[[Entry], int],
    batch_size: int,
    advance: Callable[[int], None],
) -> list[Result]:
    """Return `run`'s result for every entry, in the order of `entries`.

    Entries are sorted by `length`, longest first, so that a batch has little padding and memory runs out early or
    never. A batch takes entries until their `rows` reach `batch_size`; one entry is the least.
    """
    order = sorted(range(len(entries)), key=lambda index: length(entries[index]), reverse=True)
    results: dict[int, Result] = {}
    for batch in _split(order, lambda index: rows(entries[index]), batch_size):
        found = _run_or_halve([entries[index] for index in batch], run)
        results.update(zip(batch, found, strict=True))
        advance(len(batch))
    return [results[index] for index in range(len(entries))]


def _split(order: Sequence[int], rows: Callable[[int], int], batch_size: int) -> Iterator[list[int]]:
    """Yield runs of `order` whose rows add up to at most `batch_size`, or that have one entry."""
    batch: list[int] = []
    for index in order:
        if batch and sum(map(rows, batch)) + rows(index) > batch_size:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _run_or_halve(batch: list[Entry], run: Callable[[list[Entry]], list[Result]]) -> list[Result]:
    """Return `run(batch)`; when the device has too little memory, the results of its two halves."""
    try:
        return run(batch)
    except torch.OutOfMemoryError as error:
        if len(batch) == 1:
            raise ModelError(
                "the device has too little memory to ask even one item at a time",
                "a device with room for the model and one item",
                "use a smaller machine.dtype, another machine.device, or a smaller model",
            ) from error
    # Outside the handler: the exception would keep the failed batch's tensors alive.
    torch.cuda.empty_cache()
    half = len(batch) // 2
    return _run_or_halve(batch[:half], run) + _run_or_halve(batch[half:], run)


@contextmanager
def asking_mode(model: Any) -> Iterator[None]:
    """Evaluate without gradients and without dropout; each module's training flag is put back afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def padded(rows: Sequence[Sequence[int]], pad: int, side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids (B, T) padded on `side` ("left" or "right") with `pad`, and their mask (B, T) of 0 and 1."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[index, place] = torch.tensor(row, dtype=torch.long)
        mask[index, place] = 1
    return ids.to(device), mask.to(device)
