"""The models of a run: where each lies, and the one that a stage loaded, kept for the next one."""

import gc
from pathlib import Path
from typing import Any

from striate.config import RunConfig
from striate.pipeline.model_origins import FOLDERS, origin_of
from striate.pipeline.preflight import check_adapter
from striate.runs.folder import RunFolder

# What a run begins with, and the same as QLoRA trains it.
BASE_LABEL, QUANTIZED = "start", "start in 4 bits"


class ResidentModel:
    """The models of a run by their labels, at most one of them in memory."""

    def __init__(self, run: RunFolder, start: str) -> None:
        """Take a run's folder, and folder or hub id of the model that it begins with."""
        self._run, self._start = run, start
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
        # Nothing is free yet: the stage has it.
        self._loaded = None
        return loaded

    def take_to_tune(self) -> Any:
        """Return what `take` does of the model that is tuned, in 4 bits for QLoRA."""
        config = self._run.config
        return self.take(QUANTIZED if config.train.method == "qlora" else origin_of(config, "tuned"))

    def drop(self) -> None:
        """Release the model, and what its device keeps of it: others may train there meanwhile."""
        if self._loaded is None:
            return
        self._loaded = None
        import torch

        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()

    def path_of(self, label: str) -> str:
        """Return where the model called `label` is."""
        if label == QUANTIZED:
            return self.path_of(origin_of(self._run.config, "tuned"))
        own = {name: self._run.path / folder for name, folder in FOLDERS.items()}
        return str({**own, **self._run.config.evaluate.others}.get(label, self._start))

    def base_of_adapters(self, origin: str) -> str:
        """Return where the model is that adapters train on, as they name it: one of this run is found from anywhere."""
        path = self.path_of(origin)
        return str(Path(path).absolute()) if origin != BASE_LABEL else path

    def _read(self, label: str) -> Any:
        from striate.models.io.hub_download import fetch_weights

        config, path = self._run.config, self.path_of(label)
        fetch_weights(self._start, config.model.revision, self._run.progress)
        if label not in (BASE_LABEL, QUANTIZED):
            check_adapter(Path(path), self.path_of(origin_of(config, "tuned")) if label == "tuned" else self._start)
        revision = config.model.revision if label in (BASE_LABEL, QUANTIZED) else None
        return load_for(config, path, quantized=label == QUANTIZED, revision=revision)


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
