"""What other libraries make of a model's files: whatever they raise at their contents is an error about that model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from striate.errors import ModelError, StriateError, first_line


@contextmanager
def reading_model(given: str, allowed: str, next_step: str) -> Iterator[None]:
    """Turn every exception within into a ModelError that begins with `given`; memory that ran out stays what it is.

    A config with text for a number, no heads or negative sizes raises whatever the first line raises that uses it.
    """
    try:
        yield
    except (StriateError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelError(f"{given}: {first_line(error)}", allowed, next_step) from error
