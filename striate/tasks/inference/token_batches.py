"""Run work in batches of similar length, bounded by tokens, that shrink when memory runs out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from striate.errors import ModelError
from striate.models.interventions.eval_mode import evaluating
from striate.tasks.inference.run_state import Budget

Entry = TypeVar("Entry")
Result = TypeVar("Result")


def run_in_batches(
    entries: Sequence[Entry],
    run: Callable[[list[Entry]], list[Result]],
    *,
    length: Callable[[Entry], int],
    rows: Callable[[Entry], int],
    budget: Budget,
    finished: Callable[[list[int], list[Result]], None],
    order: Callable[[Entry], Any] | None = None,
    read: Callable[[Entry], int] | None = None,
) -> list[Result]:
    """Return `run`'s result for every entry, in the order of `entries`.

    Entries are sorted by `length` (tokens, those still to be written included), longest first, so that a batch has
    little padding and memory runs out early or never. A batch takes what `budget` has room for; one entry is the least.
    When memory runs out the budget shrinks, and the batches that follow keep to what fitted. After each batch
    `finished` is called with the places of its entries and their results. `order` is another key to sort by, largest
    first; `read` is how many tokens of an entry's rows are read at once, if not all.

    Raises:
        ModelError: the device has too little memory for a single entry.
    """
    key, width = order or length, read or length
    places = sorted(range(len(entries)), key=lambda index: key(entries[index]), reverse=True)
    results: dict[int, Result] = {}
    while places:
        next_up = [entries[index] for index in places[: budget.rows]]
        size = budget.fitting([(length(entry), rows(entry), width(entry)) for entry in next_up])
        batch = places[:size]
        batch_results = attempt([entries[index] for index in batch], run, budget, length, rows)
        if batch_results is None:
            continue
        places = places[size:]
        results.update(zip(batch, batch_results, strict=True))
        finished(batch, batch_results)
    return [results[index] for index in range(len(entries))]


def attempt(
    batch: list[Entry],
    run: Callable[[list[Entry]], list[Result]],
    budget: Budget,
    length: Callable[[Entry], int],
    rows: Callable[[Entry], int],
) -> list[Result] | None:
    """Return `run(batch)`, or None after `budget` was made smaller because the device has too little memory."""
    total = sum(map(rows, batch))
    longest = max(map(length, batch))
    try:
        results = run(batch)
    except torch.OutOfMemoryError as error:
        if len(batch) == 1:
            raise ModelError(
                "the device has too little memory to ask even one item at a time",
                "a device with room for the model and one item",
                "use a smaller machine.dtype, another machine.device, or a smaller model",
            ) from error
    else:
        budget.fitted(total)
        return results
    # Outside the handler: the exception would keep the failed batch's tensors alive.
    torch.cuda.empty_cache()
    budget.shrink(total, longest)
    return None


@contextmanager
def asking_mode(model: Any) -> Iterator[None]:
    """Evaluate without gradients and without dropout; each module's training flag is put back afterwards."""
    with evaluating(model), torch.inference_mode():
        yield


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
