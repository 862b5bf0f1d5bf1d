"""The parameters that train: written to a checkpoint, read back, and whether their values are sane."""

from __future__ import annotations

import math
from collections.abc import Container
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from striate.errors import DivergedError, TrainingError
from striate.training.distributed.full_parameters import copy_into, gathered
from striate.training.distributed.ranks import Ranks
from striate.training.metrics.metrics_log import AFTER_DIVERGING

WEIGHTS = "trainable.safetensors"
GROWTH = 1000.0
"""How many times the norm that trained weights began with they may have in a checkpoint that counts as good."""


def save_trainable(model: nn.Module, folder: Path, names: Container[str], start_norm: float = math.inf) -> None:
    """Write the parameters of `model` that train, `names`, to `folder`; some of them may be closed for the moment.

    Raises:
        DivergedError: a value is not finite, or their norm is over `GROWTH` times `start_norm`.
    """
    tensors, norm = {}, 0.0
    for name, parameter in model.named_parameters():
        if name in names:
            with gathered(parameter) as tensor:
                tensors[name] = tensor.detach().contiguous()
                norm = math.hypot(norm, _norm(tensor))
    check_sane(norm, start_norm, folder)
    ranks = Ranks.launched()
    # Where weights are sharded, what follows on the other processes waits for this one.
    with ranks.together():
        if ranks.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, str(folder / WEIGHTS))


def norm_of(model: nn.Module, names: Container[str]) -> float:
    """Return the joint L2 norm of the parameters of `model` that train, `names`."""
    norm = 0.0
    for name, parameter in model.named_parameters():
        if name in names:
            with gathered(parameter) as tensor:
                norm = math.hypot(norm, _norm(tensor))
    return norm


def check_sane(norm: float, start_norm: float, folder: Path) -> None:
    """Return if weights of joint norm `norm`, which began with `start_norm`, may become the checkpoint `folder`.

    Raises:
        DivergedError: it is not finite, or has grown over `GROWTH` times.
    """
    # Weights that all began as zeros have no norm to grow from.
    if math.isfinite(norm) and (norm <= GROWTH * start_norm or not start_norm):
        return
    raise DivergedError(
        f"training diverged before {folder.name}: the norm of the trained weights went from {start_norm:.3g} to"
        f" {norm:.3g}; that checkpoint is not kept",
        f"finite weights, of at most {GROWTH:g} times the norm that they began with",
        AFTER_DIVERGING,
    )


def load_trainable(model: nn.Module, folder: Path) -> None:
    """Copy the parameters that `save_trainable` wrote back into `model`.

    Raises:
        TrainingError: the stored tensors are not exactly those that train.
    """
    stored = load_file(str(folder / WEIGHTS))
    wanted = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    if stored.keys() != wanted.keys():
        different = sorted(stored.keys() ^ wanted.keys())
        raise TrainingError(
            f"{folder} does not hold the tensors that train: {len(different)} differ, such as {different[0]}",
            "a checkpoint of this model, region and method",
            "use --overwrite to begin the training anew",
        )
    for name, tensor in wanted.items():
        copy_into(tensor, stored[name])


def _norm(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64))
