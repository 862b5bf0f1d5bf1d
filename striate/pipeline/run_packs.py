"""The test packs of a run, read once: those of the evaluation, and those by which `prune.until` chooses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from striate.errors import ArtifactError
from striate.pipeline.run_inputs import RunInputs
from striate.runs.folder import RunFolder
from striate.storage.inside import inside

if TYPE_CHECKING:
    from striate.tasks.packs.items import Pack
    from striate.tasks.packs.sources import Source


class RunPacks:
    """The test packs of one run, each read and checked when it is first asked for."""

    def __init__(self, run: RunFolder, inputs: RunInputs) -> None:
        """Take a run's folder, and where its packs and training data are."""
        self._run, self._inputs = run, inputs
        self._read: dict[str, list[Pack]] = {}
        self._noted = False

    def read(self) -> list[Pack]:
        """Return the test packs."""
        return self._of(self._inputs.packs, "eval")

    def read_until(self) -> list[Pack]:
        """Return the packs by which `prune.until` chooses; empty where the test packs do."""
        return self._of(self._inputs.until_packs, "trials")

    def noted(self) -> list[Pack]:
        """Return the test packs, after what is odd about them and the training data was said and written, once."""
        from striate.data.reading import read_many
        from striate.pipeline.model_evaluation import write_data_notes

        if not self._noted:
            limit, seed = self._run.config.data.max_train_samples, self._run.config.seed
            trained = partial(read_many, self._inputs.train, limit, seed, self._inputs.options)
            write_data_notes(self._run, self.read(), trained)
            self._noted = True
        return self.read()

    def _of(self, sources: Sequence[Source], folder: str) -> list[Pack]:
        """Return what `sources` hold; pictures inside other files are unpacked into `folder` of the run."""
        from striate.tasks.packs.sources import read_source

        if folder not in self._read:
            path = inside(self._run.path, folder, "pictures", what="run folder:", error_class=ArtifactError)
            pictures, limit = path.resolve(), self._run.config.evaluate.limit
            self._read[folder] = [read_source(source, limit, pictures) for source in sources]
        return self._read[folder]
