"""The visual region: which decoder layers were chosen (`region.json`)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from striate.artifacts.base import Document
from striate.errors import SpecError

# Of the rule that earlier versions kept here, which is read by `models.visual_token_skipping.visual_compute`.
_OF_THE_RULE = ("image_tokens", "image_layers", "image_shift")


class Region(Document):
    """The chosen decoder layers of one LLM (`region.json`): 0-based, sorted, of `num_layers` in all.

    `removable` are layers outside it that its selector gives up, the most redundant first; `prune` takes these first.
    """

    version: Literal[1] = 1
    layers: tuple[int, ...]
    num_layers: int = Field(ge=1)
    spec: str
    selector: str = ""
    removable: tuple[int, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _without_rule(cls, stored: Any) -> Any:
        return {k: v for k, v in stored.items() if k not in _OF_THE_RULE} if isinstance(stored, dict) else stored

    @model_validator(mode="after")
    def _check(self) -> Region:
        named = (*self.layers, *self.removable)
        outside = [layer for layer in named if not 0 <= layer < self.num_layers]
        if outside:
            raise SpecError(
                f"region {self.spec!r} names layer {', '.join(map(str, outside))}, "
                f"but the model has {self.num_layers} layers",
                f"layers 0 to {self.num_layers - 1}",
                "layers are counted from 0; `striate inspect MODEL` shows them",
            )
        if list(self.layers) != sorted(set(self.layers)):
            raise SpecError(
                f"region {self.spec!r} has layers out of order or twice: {list(self.layers)}",
                "each layer once, in rising order",
                "remove the repeats",
            )
        if len({*self.layers, *self.removable}) < len(self.layers) + len(self.removable):
            raise SpecError(
                f"region {self.spec!r} may remove a layer twice, or one of its own: {list(self.removable)}",
                "each removable layer once, and outside the region",
                "choose the region again with `striate select`",
            )
        return self

    @property
    def ratio(self) -> float:
        """The share of layers inside: `len(layers) / num_layers`."""
        return len(self.layers) / self.num_layers

    @property
    def outside(self) -> tuple[int, ...]:
        """The layers that are not in the region."""
        return tuple(layer for layer in range(self.num_layers) if layer not in self.layers)

    def __contains__(self, layer: object) -> bool:
        return layer in self.layers

    def __len__(self) -> int:
        return len(self.layers)
