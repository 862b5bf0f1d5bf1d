"""Which layers of a pruned model heal: the region, those beside the cuts, or those of a SPEC."""

from __future__ import annotations

from itertools import pairwise

from striate.artifacts import PruneRecord, Region
from striate.config import BESIDE, REGION, RunConfig
from striate.models.surgery.renumber import kept_numbers, renumbered
from striate.selectors.spec.grammar import resolve
from striate.selectors.spec.required_scores import parse_unscored


def healed_layers(name: str, pruned: PruneRecord) -> Region:
    """Return the layers that `heal.region` names, in the numbers of the pruned model.

    Raises:
        SpecError: a SPEC that can't be read, needs scores, or does not fit the pruned model.
    """
    if name == REGION:
        return renumbered(pruned.region, pruned.old_to_new)
    if name == BESIDE:
        layers = tuple(kept_numbers(_beside(pruned), pruned.kept))
        spec = f"ids:{','.join(map(str, layers))}" if layers else "none"
        return Region(layers=layers, num_layers=len(pruned.kept), spec=spec, selector="ids" if layers else "none")
    return resolve(parse_unscored("heal.region", name), len(pruned.kept))


def layers_ahead(config: RunConfig, region: Region, most: int) -> list[Region]:
    """Return what `heal.region` may name once up to `most` layers are gone, as far as that is known before they are.

    With `prune.until` none may go, or as many as `most`: it must fit both.

    Raises:
        SpecError: a SPEC that can't be read, needs scores, or does not fit the pruned model.
    """
    name = config.heal.region
    if name == REGION:
        return [region]
    # Beside no gap there is no layer.
    if name == BESIDE:
        return []
    left = {region.num_layers - most, *([region.num_layers] if config.prune.until else [])}
    return [resolve(parse_unscored("heal.region", name), depth) for depth in sorted(left)]


def _beside(pruned: PruneRecord) -> list[int]:
    """Return the kept layers next to a removed one, before or behind it, in the numbers before pruning."""
    depth = len(pruned.kept) + len(pruned.removed)
    gaps = [-1, *pruned.kept, depth]
    pairs = [(one, other) for one, other in pairwise(gaps) if other - one > 1]
    return sorted({layer for pair in pairs for layer in pair if 0 <= layer < depth})
