"""Silences the log, warnings and progress bars of transformers while striate reports progress itself."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod

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
    # Its reader of GGUF files draws bars that it can't be told to leave out.
    drawing = tqdm.__init__
    tqdm.__init__ = partialmethod(drawing, disable=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        tqdm.__init__ = drawing
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
