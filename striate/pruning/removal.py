"""How many decoder layers are removed: a number, or a percentage of those that a model has."""

from __future__ import annotations

from striate.artifacts import Region
from striate.config import PruneSection
from striate.errors import ConfigError
from striate.printable import shown
from striate.selectors.spec.size import read_size


def layers_to_remove(remove: int | str, num_layers: int) -> int:
    """Return how many of `num_layers` decoder layers `remove` means: `4` is that many, `25%` a share of them.

    A share r of L layers means `floor(r * L + 0.5)` layers, at least one; `0%` is none.

    Raises:
        ConfigError: neither a number of layers nor a percentage from 0% to 100%.
    """
    if isinstance(remove, int) and not isinstance(remove, bool):
        return remove
    if not (isinstance(remove, str) and remove.endswith("%")):
        raise ConfigError(
            f"{shown(remove)} layers to remove",
            "a number of layers such as 4, or a percentage of them such as '25%'",
            "write a share of the layers with %",
        )
    return 0 if not remove.strip("0.% ") else read_size(remove).of(num_layers)


def removal_of(section: PruneSection, region: Region) -> int:
    """Return how many layers `section` removes, or with `section.until` at most: those outside `region` then bound it.

    Raises:
        ConfigError: as `layers_to_remove`.
    """
    asked = layers_to_remove(section.remove, region.num_layers)
    return min(asked, len(region.outside), region.num_layers - 1) if section.until else asked
