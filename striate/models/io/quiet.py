"""Silences the log, warnings and progress bars of transformers while striate reports progress itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

from tqdm import tqdm
from transformers.utils import logging as transformers_logging


@contextmanager
def quietly(quiet: bool) -> Iterator[None]:
    """Silence transformers' log, warnings and progress bars, and set them back afterwards."""
    if not quiet:
        yield
        return
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # Its reader of GGUF files and compressed-tensors draw bars that they can't be told to leave out.
    drawing = tqdm.__init__
    tqdm.__init__ = partialmethod(_without_bar, drawing)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        tqdm.__init__ = drawing
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _without_bar(bar: Any, drawing: Callable[..., None], *arguments: Any, **settings: Any) -> None:
    drawing(bar, *arguments, **{**settings, "disable": True})
