"""CUDA graphs of compiled layers, by Inductor's own recorder (what `mode="reduce-overhead"` turns on).

Launching a small model's kernels takes longer than computing them; a graph launches all of a layer's pass at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from striate.data.packing import Batch
from striate.training.inputs.step_inputs import StepInput

GRAPH_OPTIONS: Mapping[str, Any] = {"triton.cudagraphs": True}


class GraphedSteps(StepInput):
    """A step input: begins a new pass of graphs with each micro-batch, and takes gradients out of their memory."""

    def __init__(self, model: nn.Module) -> None:
        """Take the model whose layers are recorded."""
        self._model = model
        self._own: dict[int, torch.Tensor] = {}

    @contextmanager
    def serving(self, batch: Batch, on_cpu: Batch) -> Iterator[Batch]:
        """Yield the batch; at the end of the block each gradient has memory that no later replay writes to."""
        torch.compiler.cudagraph_mark_step_begin()
        if all(parameter.grad is None for parameter in self._model.parameters()):
            # The step before is over: its gradients need no memory any more.
            self._own.clear()
        yield batch
        for parameter in self._model.parameters():
            if parameter.grad is not None and self._own.get(id(parameter)) is not parameter.grad:
                parameter.grad = parameter.grad.clone()
                self._own[id(parameter)] = parameter.grad
