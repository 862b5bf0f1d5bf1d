"""The models that a page compares, in memory together, and how their layers are counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from striate.artifacts import PruneRecord, Region, read_if_there
from striate.data.samples import Sample
from striate.dialogue.answering import Answerer
from striate.dialogue.picture_reading import attention_to_pictures
from striate.models.io.load import Loaded
from striate.models.structure.anatomy import find_anatomy


@dataclass(frozen=True)
class PageModels:
    """What a page asks.

    Attributes:
        title: of the page: the run, or the model.
        loaded: each model with its processor, by label.
        answerers: what asks each of them.
        region: of the run, if it has one.
        kept: of the run's smaller model: its layers as the whole one counts them; empty without a pruned model.
    """

    title: str
    loaded: Mapping[str, Loaded]
    answerers: Mapping[str, Answerer]
    region: Region | None = None
    kept: tuple[int, ...] = ()

    @classmethod
    def load(
        cls, title: str, loads: Mapping[str, Callable[[], Loaded]], max_new_tokens: int, run: Path | None
    ) -> PageModels:
        """Return the models that `loads` gives, by label; `run` is the folder that they belong to, if any.

        Raises:
            StriateError: a model can't be loaded, or an artifact of the run can't be read.
        """
        region = read_if_there(run / "region.json", Region) if run else None
        pruned = read_if_there(run / "prune.json", PruneRecord) if run else None
        loaded = {label: load() for label, load in loads.items()}
        answerers = {label: Answerer(model.model, model.processor, max_new_tokens) for label, model in loaded.items()}
        return cls(title, loaded, answerers, region, pruned.kept if pruned else ())

    @cached_property
    def num_layers(self) -> int:
        """Decoder layers of the largest model, before pruning where the run tells."""
        known = self.region.num_layers if self.region else 0
        return max(known, *(find_anatomy(model.model).num_layers for model in self.loaded.values()))

    def attention(self, label: str, sample: Sample) -> dict[int, float]:
        """Return the share of each layer's attention on the picture, by its number in the whole model.

        Raises:
            ModelError: the model's attention can't be watched.
        """
        model = self.loaded[label]
        shares = attention_to_pictures(model.model, model.processor, sample)
        smaller = len(shares) == len(self.kept) < self.num_layers
        return dict(zip(self.kept if smaller else range(len(shares)), shares, strict=True))
