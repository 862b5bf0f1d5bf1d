"""Which decoder layers compute image tokens: `visual_compute.json` of a checkpoint, beside its `region.json`.

A checkpoint without that file computes image tokens in every layer, unless its `region.json` holds the rule, as those
of earlier versions do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from striate.artifacts import Document, Region, read_document
from striate.errors import SpecError

VISUAL_COMPUTE_FILE = "visual_compute.json"


class VisualCompute(Document):
    """The decoder layers of one LLM that compute image tokens, 0-based and sorted; image tokens skip all others.

    `shift` says whether image tokens take a constant step in layers that they skip (`image_shift.safetensors`).
    """

    version: Literal[1] = 1
    layers: tuple[int, ...]
    num_layers: int = Field(ge=1)
    shift: bool = False

    @model_validator(mode="after")
    def _check(self) -> VisualCompute:
        if list(self.layers) != sorted(set(self.layers) & set(range(self.num_layers))):
            raise SpecError(
                f"image tokens are computed in layers {list(self.layers)} of {self.num_layers}",
                f"layers 0 to {self.num_layers - 1}, each once, in rising order",
                f"train again, which writes {VISUAL_COMPUTE_FILE} anew",
            )
        return self

    @property
    def skipped(self) -> tuple[int, ...]:
        """The layers that image tokens skip."""
        return tuple(layer for layer in range(self.num_layers) if layer not in self.layers)


def read_visual_compute(folder: Path) -> VisualCompute | None:
    """Return where the checkpoint in `folder` computes image tokens, or None where it does in every layer.

    Raises:
        ArtifactError: the file that says so is damaged.
    """
    file, earlier = folder / VISUAL_COMPUTE_FILE, folder / "region.json"
    if file.is_file():
        return read_document(file, VisualCompute)
    return _from_region_file(earlier) if earlier.is_file() else None


def _from_region_file(file: Path) -> VisualCompute | None:
    """Return the rule that a region.json of an earlier version holds, in keys that `Region` itself leaves out."""
    region, stored = read_document(file, Region), json.loads(file.read_text(encoding="utf-8"))
    if stored.get("image_tokens", "all") == "all":
        return None
    layers = sorted({*region.layers, *stored.get("image_layers", ())})
    return VisualCompute(layers=tuple(layers), num_layers=region.num_layers, shift=stored.get("image_shift", False))
