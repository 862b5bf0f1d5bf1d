"""Packed rows: how a model reads several samples in one row, each with positions and attention of its own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from striate.data.packing import GRIDS, SEGMENTS, Batch
from striate.models.structure.anatomy import unwrap
from striate.models.structure.decoder_stack import decoder_config
from striate.training.inputs.step_inputs import StepInput
from striate.training.packing.packed_attention import PackedRow, packed_attention_of, reading_row, refused

_ATTENTION = {"full_attention", "sliding_attention"}
_TOKENS = ("input_ids", "attention_mask", "mm_token_type_ids")


class Packing(StepInput):
    """One model's packed rows: its positions and its attention. A step input (`training.inputs.step_inputs`).

    Attributes:
        row: the latest row.
    """

    row: PackedRow

    def __init__(self, model: nn.Module) -> None:
        """Look at the model.

        Raises:
            TrainingError: a model that can't read packed rows, and why.
        """
        other = sorted(set(getattr(decoder_config(model), "layer_types", None) or []) - _ATTENTION)
        if other:
            raise refused(f"it has layers of {other[0].replace('_', ' ')}")
        self._model, self._installed = model, False
        self._positions = Positions(model)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let the model attend within samples wherever a row is read, for a whole training."""
        with packed_attention_of(self._model):
            self._installed = True
            try:
                yield
            finally:
                self._installed = False

    def prepared(self, batch: Batch) -> Batch:
        """Return a row with the positions of its tokens; other batches as they are."""
        return {**batch, "position_ids": self._positions(batch)} if SEGMENTS in batch else batch

    @contextmanager
    def serving(self, batch: Batch, on_cpu: Batch) -> Iterator[Batch]:
        """Yield what the model takes of a row, and keep its samples apart until the end of the block."""
        if SEGMENTS not in on_cpu:
            yield batch
            return
        with ExitStack() as stack:
            if not self._installed:
                stack.enter_context(self.installed())
            lengths = on_cpu[SEGMENTS][:, 0].tolist()
            self.row = stack.enter_context(reading_row(lengths, batch["input_ids"].device))
            yield {name: tensor for name, tensor in batch.items() if name != SEGMENTS}


class Positions:
    """Finds the positions of a row's tokens, every sample from its own start, as the model does for one sample."""

    def __init__(self, model: nn.Module) -> None:
        """Look up how the model numbers its tokens.

        Raises:
            TrainingError: its forward pass takes no positions.
        """
        core: Any = unwrap(model)
        if "position_ids" not in inspect.signature(type(core).forward).parameters:
            raise refused("its forward pass takes no position_ids")
        owners = (core, getattr(core, "model", None), getattr(core, "base_model", None))
        # Multimodal RoPE (Qwen2-VL, arXiv 2409.12191, section 2.1): time, row and column of each token.
        self._rope_index = next((rope for owner in owners if (rope := getattr(owner, "get_rope_index", None))), None)
        self._taken = set(inspect.signature(self._rope_index).parameters) if self._rope_index else set()

    def __call__(self, row: Batch) -> torch.Tensor:
        """Return (1, T), or (3, 1, T) where positions have three axes."""
        if self._rope_index is None:
            return torch.cat([torch.arange(length) for length in row[SEGMENTS][:, 0].tolist()]).unsqueeze(0)
        positions, start, grid = [], 0, 0
        for length, grids in row[SEGMENTS].tolist():
            positions.append(self._of_sample(row, slice(start, start + length), slice(grid, grid + grids)))
            start, grid = start + length, grid + grids
        return torch.cat(positions, dim=-1)

    def _of_sample(self, row: Batch, here: slice, grids: slice) -> torch.Tensor:
        """Return (3, 1, L) of one sample."""
        length = here.stop - here.start
        if grids.start == grids.stop or self._rope_index is None:
            return torch.arange(length).expand(3, 1, length)
        tokens: Batch = {name: row[name][:, here] for name in _TOKENS if name in row}
        tokens[GRIDS] = row[GRIDS][grids]
        positions: torch.Tensor = self._rope_index(**{name: tokens[name] for name in tokens if name in self._taken})[0]
        return positions
