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
from striate.models.trainable.apply import apply_region, lora_config


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


def trained_counts(plan: Blueprint, region: Region, *, r: int = 128) -> dict[str, int]:
    """Return how many parameters `region` trains, projector included: with LoRA of rank `r`, and with full weights.

    An empty region has no place for LoRA.

    A LoRA pair on a matrix of shape (out, in) has r * (in + out) parameters (Hu et al., arXiv 2106.09685).

    Raises:
        SpecError: the region is of a model with another number of layers.
    """
    full = apply_region(plan.model, region, "full").trainable
    if not region.layers:
        return {"full": full}
    names = lora_config(plan.model, region, r=r).target_modules
    modules = dict(plan.model.named_modules())
    pairs = sum(r * sum(modules[name].weight.shape) for name in names)
    return {f"LoRA, r {r}": pairs + plan.count("projector"), "full": full}


def pruned_counts(plan: Blueprint, region: Region, remove: int) -> tuple[int, int]:
    """Return the most and the fewest parameters that are left without `remove` layers outside `region`.

    The two differ where layers are not all of one size.
    """
    layers = decoder_layers(plan.model)
    sizes = sorted(sum(tensor.numel() for tensor in layers[layer].parameters()) for layer in region.outside)
    return plan.total - sum(sizes[:remove]), plan.total - sum(sizes[len(sizes) - remove :])
