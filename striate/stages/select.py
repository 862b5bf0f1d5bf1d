"""Select: choose the visual region."""

from __future__ import annotations

from typing import TYPE_CHECKING

from striate.artifacts import Region, Scores
from striate.selectors.spec.grammar import Spec, resolve

if TYPE_CHECKING:
    from torch import nn


def select(model: int | nn.Module, spec: str | Spec, scores: Scores | None = None) -> Region:
    """Return the region that `spec` means on `model`.

    Paper: arXiv 2412.12785, the visual region; strategies are listed by `striate ls selectors`.

    Args:
        model: an LVLM (PEFT-wrapped or not), or just the number of its decoder layers.
        spec: the SPEC, read or not, for example `uniform:25%`; docs/regions.md has all forms.
        scores: what `analyze` returned; only selectors from scores need it.

    Raises:
        SpecError: the SPEC can't be read, or does not fit the model or the scores.
        ArtifactError: the region file can't be read, or a scorer that the SPEC names was not run.
        ModelError: the model is not an LVLM.
    """
    return resolve(spec, _num_layers(model), scores)


def _num_layers(model: int | nn.Module) -> int:
    """Return the number of decoder layers; only a model needs torch, so it is imported only then."""
    if isinstance(model, int):
        return model
    from striate.models.structure.anatomy import find_anatomy

    return find_anatomy(model).num_layers
