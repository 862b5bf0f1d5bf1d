"""Layer numbers of a model that lost layers: of its lists, and of a region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from striate.artifacts import Region


def new_numbers(kept: Sequence[int]) -> dict[int, int]:
    """Return the new number of each kept layer, by its old one."""
    return {old: new for new, old in enumerate(kept)}


def kept_numbers(layers: Sequence[int], kept: Sequence[int]) -> list[int]:
    """Return those of `layers` that are kept, in new numbers."""
    new_number = new_numbers(kept)
    return [new_number[layer] for layer in layers if layer in new_number]


def renumbered(region: Region, old_to_new: Mapping[int, int]) -> Region:
    """Return `region` in the layer numbers of a model that lost layers outside it."""
    if len(old_to_new) == region.num_layers:
        return region
    layers = tuple(old_to_new[layer] for layer in region.layers)
    spec = f"ids:{','.join(map(str, layers))}" if layers else "none"
    return Region(layers=layers, num_layers=len(old_to_new), spec=spec, selector="ids" if layers else "none")
