"""Builds an LVLM on the meta device from its config alone: components and parameter counts, no weights read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from striate.artifacts import Region
from striate.models.io.foreign import reading_model
from striate.models.io.load import A_CONFIG, read_config
from striate.models.io.quiet import quietly
from striate.models.structure.anatomy import COMPONENTS, Anatomy, component_of, find_anatomy
from striate.models.structure.decoder_stack import decoder_layers


@dataclass(frozen=True)
class Blueprint:
    """An LVLM on the meta device: every tensor has a shape and no memory."""

    model: Any
    anatomy: Anatomy

    def count(self, component: str) -> int:
        """Return the parameters of one component, shared ones once."""
        named = self.model.named_parameters()
        return sum(tensor.numel() for name, tensor in named if component_of(self.anatomy, name) == component)

    @property
    def total(self) -> int:
        """Parameters of the whole model."""
        return sum(tensor.numel() for tensor in self.model.parameters())

    def rows(self) -> list[list[str]]:
        """Return component, parameters and share, as text, for every component that the model has."""
        counts = [(component, self.count(component)) for component in COMPONENTS]
        return [[name, f"{count:,}", f"{100 * count / self.total:.1f}%"] for name, count in counts if count]


def blueprint(path: str, revision: str | None = None) -> Blueprint:
    """Return the LVLM whose config is at `path` (a folder or hub id), on the meta device.

    Raises:
        ModelError: no such model, or not an LVLM.
    """
    with quietly(True):
        config = read_config(path, revision)
        with reading_model(f"no model can be built from the config of {path}", *A_CONFIG):
            with torch.device("meta"):
                model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
            model.tie_weights()
            return Blueprint(model, find_anatomy(model))


def pruned_counts(plan: Blueprint, region: Region, remove: int) -> tuple[int, int]:
    """Return the most and the fewest parameters that are left without `remove` layers outside `region`.

    The two differ where layers are not all of one size.
    """
    layers = decoder_layers(plan.model)
    sizes = sorted(sum(tensor.numel() for tensor in layers[layer].parameters()) for layer in region.outside)
    return plan.total - sum(sizes[:remove]), plan.total - sum(sizes[len(sizes) - remove :])
