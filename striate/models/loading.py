"""Load and save LVLMs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Loaded:
    """A model and its processor."""

    model: Any
    processor: Any
