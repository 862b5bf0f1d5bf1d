"""An optimizer and its groups, and whether it can train here: AdamW with its moments in float32, or in 8 bits.

8-bit moments, which are bitsandbytes' (Dettmers et al., arXiv 2110.02861), are kept in blocks of 256 values with a
scale each. Tensors of fewer than 4,096 values keep float32 moments. Weights, gradients and masters are as with AdamW.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from striate.config import TrainSection
from striate.errors import TrainingError
from striate.models.structure.anatomy import PROJECTOR, VISION, component_of, find_anatomy

# Names of transformers' own.
NAMES = {"adamw": "adamw_torch_fused", "adamw-8bit": "adamw_bnb_8bit"}
# Groups of the optimizer beside that of the region.
_GROUPS = {PROJECTOR: "projector", VISION: "vision"}
# Values from which a tensor's moments are in 8 bits.
SMALLEST = 4096
_INSTALL = 'install it with `pip install "striate[8bit]"`, or use --set train.optimizer=adamw'


def check_optimizer(config: TrainSection, device: torch.device) -> None:
    """Return if the optimizer that `config` names can update tensors on `device`: one small update is made.

    Raises:
        TrainingError: bitsandbytes is missing, or can't do it there.
    """
    if config.optimizer == "adamw":
        return
    if find_spec("bitsandbytes") is None:
        raise TrainingError(
            f"train.optimizer {config.optimizer} needs bitsandbytes, which is not installed",
            "adamw anywhere; adamw-8bit with bitsandbytes",
            _INSTALL,
        )
    tensor = torch.nn.Parameter(torch.ones(SMALLEST, device=device))
    tensor.grad = torch.ones_like(tensor)
    try:
        optimizer = import_module("bitsandbytes").optim.AdamW([tensor], lr=0.5, weight_decay=0.0, optim_bits=8)
        optimizer.step()
        moved = float(tensor.detach().sum()) / SMALLEST
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise _unfit(config.optimizer, device, f"{type(error).__name__}: {first}") from error
    # AdamW's first step is the learning rate, against the gradient.
    if abs(moved - 0.5) > 0.05:
        raise _unfit(config.optimizer, device, f"a step of 0.5 moved weights by {1 - moved:.3g}")


def parameter_groups(
    model: nn.Module, rates: Mapping[str, float], weight_decay: float, decayed: Collection[str]
) -> list[dict[str, Any]]:
    """Return an optimizer's groups of what trains: region, projector, vision; each with and without weight decay.

    Args:
        model: plain, or wrapped by PEFT.
        rates: the learning rates of the three.
        weight_decay: of the parameters called `decayed`.
        decayed: names of parameters.
    """
    anatomy = find_anatomy(model)
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = _GROUPS.get(component_of(anatomy, name), "region")
            groups.setdefault((part, name in decayed), []).append(parameter)
    return [
        {"params": parameters, "name": part, "lr": rates[part], "weight_decay": weight_decay * decay}
        for (part, decay), parameters in groups.items()
    ]


def _unfit(optimizer: str, device: torch.device, reason: str) -> TrainingError:
    """Return the error for an optimizer that does not work on the device."""
    return TrainingError(
        f"train.optimizer {optimizer} does not work on {device}: {reason}",
        "a device that this bitsandbytes has kernels for",
        "use --set train.optimizer=adamw, or another version of bitsandbytes",
    )
