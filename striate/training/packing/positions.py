"""Positions of the tokens of a packed row: every sample counts from its own start."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from striate.data.packing import GRIDS, SEGMENTS, Batch
from striate.models.structure.anatomy import unwrap
from striate.training.packing.packed_attention import refused

_TOKENS = ("input_ids", "attention_mask", "mm_token_type_ids")


class Positions:
    """Finds the positions as the model itself does for one sample."""

    def __init__(self, model: nn.Module) -> None:
        """Look up how the model numbers its tokens.

        Raises:
            TrainingError: its forward pass takes no positions.
        """
        core: Any = unwrap(model)
        if "position_ids" not in inspect.signature(type(core).forward).parameters:
            raise refused("its forward pass takes no position_ids")
        places = (core, getattr(core, "model", None), getattr(core, "base_model", None))
        # Multimodal rotary positions (Qwen2-VL, arXiv 2409.12191, section 2.1): time, row and column of each token.
        self._three_axes = next((found for place in places if (found := getattr(place, "get_rope_index", None))), None)
        taken = inspect.signature(self._three_axes).parameters if self._three_axes else {}
        self._taken = set(taken)

    def __call__(self, row: Batch) -> torch.Tensor:
        """Return (1, T), or (3, 1, T) where positions have three axes."""
        lengths = row[SEGMENTS][:, 0].tolist()
        if self._three_axes is None:
            return torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
        found, start, grid = [], 0, 0
        for length, grids in row[SEGMENTS].tolist():
            found.append(self._of_sample(row, slice(start, start + length), slice(grid, grid + grids)))
            start, grid = start + length, grid + grids
        return torch.cat(found, dim=-1)

    def _of_sample(self, row: Batch, here: slice, grids: slice) -> torch.Tensor:
        """Return (3, 1, L) of one sample."""
        length = here.stop - here.start
        if grids.start == grids.stop or self._three_axes is None:
            return torch.arange(length).expand(3, 1, length)
        tokens: Batch = {name: row[name][:, here] for name in _TOKENS if name in row}
        tokens[GRIDS] = row[GRIDS][grids]
        positions: torch.Tensor = self._three_axes(**{name: tokens[name] for name in tokens if name in self._taken})[0]
        return positions
