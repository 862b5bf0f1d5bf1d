"""Eval mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(root: nn.Module) -> Iterator[None]:
    """Put `module` and all inside it in eval mode, and each back in its own mode afterwards, whatever happens."""
    training = [module for module in root.modules() if module.training]
    root.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
