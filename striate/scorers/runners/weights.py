"""Score weights alone: as they are, or their change from a base checkpoint."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from striate.errors import ModelError
from striate.models.io.weights.layer_weights import layer_matrices
from striate.models.io.weights.stored_matrices import StoredMatrices
from striate.models.structure.anatomy import Anatomy
from striate.progress import Advance
from striate.scorers.base import LayerScorer
from striate.scorers.runners.runner import Calibration, Runner
from striate.scorers.statistics.measurement import Measurement

Floats = NDArray[np.float64]
Matrices = Iterable[tuple[int, str, Tensor]]


@dataclass(frozen=True)
class WeightScorer(LayerScorer):
    """A scorer `(matrix) -> scalar` of a weight matrix, averaged over the matrices of a layer.

    Attributes:
        by_kind: whether each value is first divided by the mean of its kind of matrix (`mlp.down_proj`, ...) over all
            layers.
    """

    by_kind: bool = False


def run_weights(core: Any, anatomy: Anatomy, scorers: Sequence[LayerScorer], base: Path | None) -> dict[str, Floats]:
    """Return the score of every layer, shape (L,), of each scorer whose source is `weights` or `weight change`.

    Matrix by matrix on the model's device; the base checkpoint is read tensor by tensor, so memory beyond the model is
    a few copies of the largest matrix.

    Args:
        core: the LVLM, without wrappers; adapters inside it count as part of its weights.
        anatomy: its parts.
        scorers: those to run.
        base: the folder of the untuned checkpoint, whole or in shards, or of an adapter; needed by `weight change`
            alone.

    Raises:
        ModelError: quantised weights; no base, one that can't be read, or one with other layers.
    """
    return score_weights(layer_matrices(core, anatomy), anatomy.num_layers, scorers, base)


def _measure(calibration: Calibration, scorers: Sequence[LayerScorer], advance: Advance) -> list[Measurement]:
    values = run_weights(calibration.core, calibration.anatomy, scorers, calibration.base)
    return [Measurement(scorer, values=values[scorer.name], by_sample=False) for scorer in scorers]


WEIGHTS = Runner(("weights", "weight change"), _measure, by_sample=False)


def run_stored_weights(tuned: Path, scorers: Sequence[LayerScorer], base: Path | None) -> dict[str, Floats]:
    """Return what `run_weights` does for a checkpoint on disk, without loading it: safetensors or a LoRA adapter.

    Raises:
        ModelError: as `run_weights`, and for a checkpoint that can't be read.
    """
    stored = StoredMatrices(tuned)
    return score_weights(stored, stored.anatomy.num_layers, scorers, base)


def score_weights(
    matrices: Matrices, num_layers: int, scorers: Sequence[LayerScorer], base: Path | None
) -> dict[str, Floats]:
    """Return the scores of a stream of matrices (layer, parameter name, weights)."""
    changes = [scorer for scorer in scorers if scorer.needs_base]
    alone = [scorer for scorer in scorers if not scorer.needs_base]
    before = _base(base, num_layers, changes)
    values: dict[str, list[tuple[int, str, Tensor]]] = {scorer.name: [] for scorer in scorers}
    seen = set()
    for layer, name, weight in matrices:
        seen.add(name)
        for scorer in alone:
            values[scorer.name].append((layer, _kind(name, layer), _stack_mean(scorer, weight)))
        if before is not None:
            former, now = _float(_former(before, name, weight)).to(weight.device), _float(weight)
            for scorer in changes:
                values[scorer.name].append((layer, _kind(name, layer), _stack_mean(scorer, former, now)))
    if before is not None and before.shapes.keys() - seen:
        extra = min(before.shapes.keys() - seen)
        raise _mismatch(f"the base checkpoint has {extra}, and the tuned model has not")
    by_kind = {scorer.name for scorer in scorers if isinstance(scorer, WeightScorer) and scorer.by_kind}
    return {
        scorer.name: (_by_kind if scorer.name in by_kind else _by_layer)(values[scorer.name], num_layers)
        for scorer in scorers
    }


def _base(base: Path | None, num_layers: int, changes: Sequence[LayerScorer]) -> StoredMatrices | None:
    if not changes:
        return None
    if base is None:
        raise ModelError(
            f"{changes[0].name} compares with the checkpoint before tuning, and none was named",
            "a folder with the base model's safetensors",
            "set analyze.base, or leave that scorer out",
        )
    stored = StoredMatrices(base)
    check_depths(stored.anatomy.num_layers, num_layers)
    return stored


def check_depths(base_layers: int, num_layers: int) -> None:
    """Return if the base checkpoint has as many decoder layers as the tuned model.

    Raises:
        ModelError: it has not.
    """
    if base_layers != num_layers:
        raise _mismatch(f"the base checkpoint has {base_layers} decoder layers, the tuned {num_layers}")


def _former(before: StoredMatrices, name: str, weight: Tensor) -> Tensor:
    """Return a matrix of the base checkpoint, which must be there in the same shape."""
    shape = before.shapes.get(name)
    if shape is None:
        raise _mismatch(f"the tuned model has {name}, and the base checkpoint has not")
    if shape != tuple(weight.shape):
        raise _mismatch(f"{name} has shape {tuple(weight.shape)} in the tuned model and {shape} in the base checkpoint")
    return before.read(name)


def _mismatch(given: str) -> ModelError:
    return ModelError(given, "two checkpoints of one model, before and after tuning", "check analyze.base")


def _float(weight: Tensor) -> Tensor:
    return weight if weight.dtype == torch.float64 else weight.float()


def _stack_mean(scorer: LayerScorer, *weights: Tensor) -> Tensor:
    """Return the mean over all matrices of a stack (experts in one tensor); a plain matrix is a stack of one."""
    stacks = [weight.flatten(0, -3) if weight.ndim > 2 else weight[None] for weight in weights]
    return torch.stack([scorer.function(*matrices) for matrices in zip(*stacks, strict=True)]).mean()


def _kind(name: str, layer: int) -> str:
    return name.partition(f".{layer}.")[2]


def _by_layer(rows: Sequence[tuple[int, str, Tensor]], num_layers: int) -> Floats:
    values: list[list[float]] = [[] for _ in range(num_layers)]
    for layer, _, value in rows:
        values[layer].append(float(value))
    return np.array([np.mean(matrices) if matrices else np.nan for matrices in values])


def _by_kind(rows: Sequence[tuple[int, str, Tensor]], num_layers: int) -> Floats:
    """Return the mean over the matrices of each layer, each divided by the mean of its kind over all layers."""
    kinds: dict[str, list[Tensor]] = defaultdict(list)
    for _, kind, value in rows:
        kinds[kind].append(value)
    # A kind without any signal scores 0 everywhere.
    tiny = torch.finfo(torch.float64).tiny
    means = {kind: torch.stack(values).mean().clamp_min(tiny) for kind, values in kinds.items()}
    return _by_layer([(layer, kind, value / means[kind]) for layer, kind, value in rows], num_layers)
