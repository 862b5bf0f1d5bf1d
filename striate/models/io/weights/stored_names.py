"""Maps the tensor names of a checkpoint to parameter names: transformers renames many checkpoints as it loads them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key


@dataclass(frozen=True)
class Target:
    """The parameter that a stored tensor becomes; `reshaped` where others are joined with it, or it is split."""

    name: str
    reshaped: bool


class StoredNames:
    """The renaming that transformers applies when it loads a checkpoint into one model."""

    def __init__(self, model: Any) -> None:
        rules = get_model_conversion_mapping(model)
        self._renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self._prefix = model.base_model_prefix
        self._parameters = model.state_dict()

    def target(self, stored: str) -> Target:
        """Return what the tensor called `stored` on disk becomes; the model need not have such a parameter."""
        name, pattern = self._renamed(stored, self._renamings, self._converters)
        if name not in self._parameters and stored in self._parameters:
            return Target(self._renamed(stored, [], [])[0], False)
        return Target(name, pattern is not None)

    def renumbered(self, stored: str, name: str, old: int, new: int) -> str | None:
        """Return the name on disk whose parameter is `name`, from `stored`, by changing one number `old` to `new`.

        None if there is no such place: the checkpoint's names then don't follow the layers.
        """
        parts = stored.split(".")
        for place, part in enumerate(parts):
            if part == str(old):
                candidate = ".".join([*parts[:place], str(new), *parts[place + 1 :]])
                if self.target(candidate).name == name:
                    return candidate
        return None

    def _renamed(self, stored: str, renamings: Iterable[Any], converters: Iterable[Any]) -> tuple[str, str | None]:
        """Return the new name, and the pattern of the conversion that applies, if any."""
        return rename_source_key(stored, list(renamings), list(converters), self._prefix, self._parameters)
