"""How the decoder layers run on this machine: compiled or not, as CUDA graphs or not, which are recomputed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from striate.config import MachineSection, TrainSection
from striate.models.structure.anatomy import decoder_layers
from striate.training.compile.memory_budget import layers_to_recompute
from striate.training.distributed.sharding import sharding
from striate.training.job import TrainingJob

# Compiling takes up to half a minute, and saves a third of a step: with fewer micro-batches it is not worth the wait.
WORTH_MICRO_BATCHES = 200
# Layers of fewer parameters than this are launched more slowly than they are computed.
SMALL_LAYER = 30_000_000
# Answers of a batch are filled up to a multiple of this for CUDA graphs: each other number is recorded.
ANSWERS_TOGETHER = 256


@dataclass(frozen=True)
class LayerExecution:
    """How the decoder layers run.

    Attributes:
        compiled: whether each kind of layer is compiled.
        recomputed: the layers that keep their input alone and are run again in the backward pass.
        graphs: whether compiled layers are recorded as CUDA graphs.
        fill: packed rows are filled up to a multiple of this many tokens.
        answers: answers of a batch are filled up to a multiple of this.
        lines: what to tell about it.
    """

    compiled: bool = False
    recomputed: frozenset[int] = frozenset()
    graphs: bool = False
    fill: int = 1
    answers: int = 1
    lines: tuple[str, ...] = ()

    def tell(self, notify: Callable[[str], None]) -> None:
        """Tell every line."""
        for line in self.lines:
            notify(line)


def choose_execution(model: Any, job: TrainingJob) -> LayerExecution:
    """Return how the layers of `model`, not yet wrapped by PEFT, run: from the config and the largest batch alone.

    `machine.compile` auto compiles on CUDA where there are at least `WORTH_MICRO_BATCHES` micro-batches.

    Raises:
        TrainingError: the memory budget is too small, or given together with checkpointing of every layer.
    """
    machine, on_card = job.machine, next(model.parameters()).device.type == "cuda"
    count = job.plan.steps * job.plan.accumulation
    compiled, lines = machine.compile == "on", []
    if machine.compile == "auto" and on_card:
        compiled = count >= WORTH_MICRO_BATCHES
        if not compiled:
            lines.append(f"decoder layers run uncompiled: the training has {count} micro-batches (machine.compile)")
    recomputed: frozenset[int] = frozenset()
    if machine.memory_budget is not None:
        recomputed, depth = layers_to_recompute(model, job, compiled), len(decoder_layers(model))
        lines.append(
            f"{len(recomputed)} of {depth} decoder layers are recomputed to stay below {machine.memory_budget:g} GiB"
        )
    execution = LayerExecution(compiled, recomputed, lines=tuple(lines))
    return with_graphs(execution, job.config, machine, small=_is_small(decoder_layers(model)[0]), on_card=on_card)


def with_graphs(
    execution: LayerExecution, config: TrainSection, machine: MachineSection, *, small: bool, on_card: bool
) -> LayerExecution:
    """Return `execution` with whether layers are recorded; a line says why not where they were asked for.

    `machine.graphs` auto records `small` layers where batches of few forms can be made: packed rows, filled up to
    quarters of `machine.pack_tokens`.
    """
    reasons = {
        "layers run uncompiled": not execution.compiled,
        "the model is not on a CUDA device": not on_card,
        "layers are run again in the backward pass": bool(execution.recomputed) or config.gradient_checkpointing,
        "layers take turns": bool(config.resample.active),
        "weights are sharded": bool(sharding()),
        "the vision encoder trains": config.vision != "frozen",
        "image tokens skip layers": config.image_tokens != "all",
    }
    reason = next((reason for reason, holds in reasons.items() if holds), "")
    if machine.graphs == "on" and reason:
        return replace(execution, lines=(*execution.lines, f"machine.graphs has no effect: {reason}"))
    chosen = machine.graphs == "on" or (machine.graphs == "auto" and config.packing and small)
    if reason or not chosen:
        return execution
    return replace(execution, graphs=True, fill=max(1, machine.pack_tokens // 4), answers=ANSWERS_TOGETHER)


def _is_small(layer: nn.Module) -> bool:
    return sum(parameter.numel() for parameter in layer.parameters()) < SMALL_LAYER
