"""The model that one stage hands on to the next, so that a flow reads it once."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from striate.config import RunConfig

# What a run begins with, and the same as QLoRA trains it.
BASE_LABEL, QUANTISED = "start", "start in 4 bits"


class HeldModel:
    """At most one model in memory, by its label."""

    def __init__(self, config: RunConfig, path_of: Callable[[str], str]) -> None:
        """Take a run's config, and what tells where a label's model is."""
        self._config, self._path_of = config, path_of
        self._held: tuple[str, Any] | None = None

    def load(self, label: str) -> Any:
        """Return the model called `label` with its processor, adapters merged; it is held for the next stage.

        Raises:
            ModelError: it can't be loaded.
        """
        if self._held is None or self._held[0] != label:
            self.drop()
            gc.collect()
            self._held = (label, self._read(label))
        return self._held[1]

    def drop(self) -> None:
        """Hold no model."""
        self._held = None

    def _read(self, label: str) -> Any:
        """Return the model from its files."""
        from striate.models.io.load import load_model
        from striate.models.io.quantized import load_quantised

        machine, path = self._config.machine, self._path_of(label)
        revision = self._config.model.revision if label in (BASE_LABEL, QUANTISED) else None
        if label == QUANTISED:
            return load_quantised(path, device=machine.device, revision=revision)
        return load_model(path, device=machine.device, dtype=machine.dtype, revision=revision, merge=True)
