"""Switches a module to eval mode for a block of code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(root: nn.Module) -> Iterator[None]:
    """Put `root` and its submodules in eval mode for the block, and restore each one's own mode afterwards."""
    training = [module for module in root.modules() if module.training]
    root.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
