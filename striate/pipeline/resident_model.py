"""Keep the model that one stage loaded for the next one, so that a flow loads it once."""

import gc
from collections.abc import Callable
from typing import Any

from striate.config import RunConfig

# What a run begins with, and the same as QLoRA trains it.
BASE_LABEL, QUANTIZED = "start", "start in 4 bits"


class ResidentModel:
    """At most one model in memory, by its label."""

    def __init__(self, config: RunConfig, path_of: Callable[[str], str]) -> None:
        """Take a run's config, and `path_of`, which returns where a label's model is."""
        self._config, self._path_of = config, path_of
        self._label = ""
        self._loaded: Any = None

    def load(self, label: str) -> Any:
        """Return the model called `label` with its processor, adapters merged; it stays for the next stage.

        Raises:
            ModelError: it can't be loaded.
        """
        if self._loaded is None or self._label != label:
            self.drop()
            gc.collect()
            self._label, self._loaded = label, self._read(label)
        return self._loaded

    def take(self, label: str) -> Any:
        """Return what `load` does, for a stage that changes the model: nothing is resident afterwards."""
        loaded = self.load(label)
        self.drop()
        return loaded

    def drop(self) -> None:
        """Release the model."""
        self._loaded = None

    def _read(self, label: str) -> Any:
        revision = self._config.model.revision if label in (BASE_LABEL, QUANTIZED) else None
        return load_for(self._config, self._path_of(label), quantized=label == QUANTIZED, revision=revision)


def load_for(config: RunConfig, path: str, *, quantized: bool, revision: str | None) -> Any:
    """Return the model at `path` with its processor, on the device of `config`: in 4 bits, or with adapters merged.

    Raises:
        ModelError: it can't be loaded.
    """
    from striate.models.io.load import load_model
    from striate.models.io.quantized import load_quantized

    machine = config.machine
    if quantized:
        return load_quantized(path, device=machine.device, revision=revision)
    return load_model(path, device=machine.device, dtype=machine.dtype, revision=revision, merge=True)
