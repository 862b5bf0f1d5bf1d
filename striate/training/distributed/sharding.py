"""Sharded weights (FSDP2, ZeRO-3): what can't be trained so, and FSDP's wrapping policy."""

from __future__ import annotations

import os

from torch import nn

from striate.config import TrainSection
from striate.errors import TrainingError
from striate.models.structure.anatomy import decoder_layers, unwrap
from striate.models.structure.families import family_of
from striate.training.distributed.ranks import Ranks

WRAP_VARIABLE = "FSDP_TRANSFORMER_CLS_TO_WRAP"
_EXPERTS = "experts."


def sharding() -> str:
    """Return what shards the weights over processes, as `accelerate launch` says: fsdp, deepspeed, or nothing."""
    for name in ("fsdp", "deepspeed"):
        if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() == "true":
            return name
    return ""


def check_sharding(config: TrainSection) -> None:
    """Check that the weights can be sharded as the launcher asks.

    Raises:
        TrainingError: one process alone, FSDP's first version, or a setting that needs whole weights.
    """
    kind = sharding()
    if not kind:
        return
    if Ranks.launched().world_size == 1:
        raise TrainingError(
            f"the launcher asks for {kind} on one process",
            "two processes or more, over which weights are sharded",
            "raise num_processes, or start striate without a launcher",
        )
    if kind == "fsdp" and os.environ.get("FSDP_VERSION", "1") != "2":
        raise TrainingError(
            "the launcher asks for the first version of FSDP",
            "FSDP2, which leaves every tensor its own: frozen and trained ones may lie side by side",
            "set fsdp_version: 2, as configs/accelerate/fsdp2.yaml does",
        )
    need_full_weights = (
        (config.method == "qlora", "method qlora"),
        (config.resample.active, "resample.active"),
        (config.optimizer != "adamw", f"optimizer {config.optimizer}"),
        # Its engine casts whatever a module keeps to one format, 8-bit matrices and their scales too.
        (kind == "deepspeed" and config.frozen != "exact", f"frozen {config.frozen}"),
    )
    for unfit, why in need_full_weights:
        if unfit:
            raise TrainingError(
                f"train.{why} with weights sharded by {kind}",
                "every process with all weights (configs/accelerate/ddp.yaml)",
                "use that, or another setting",
            )


def set_wrapping_policy(model: nn.Module) -> None:
    """Tell Accelerate which classes of modules FSDP wraps, unless the launcher's config does.

    transformers lists classes for it that a model need not have, such as those of a text encoder; Accelerate refuses.
    """
    if sharding() == "fsdp":
        listed = set(getattr(unwrap(model), "_no_split_modules", None) or ())
        classes = {type(module).__name__ for module in model.modules()} & listed
        classes |= {type(layer).__name__ for layer in decoder_layers(model)}
        os.environ.setdefault(WRAP_VARIABLE, ",".join(sorted(classes)))


def may_lack_gradients(model: nn.Module) -> bool:
    """Return whether some tensors that train may take no part in a batch: experts, and a family's other routes.

    DistributedDataParallel calls them unused parameters.
    """
    parts = (_EXPERTS, *family_of(unwrap(model).config.model_type).routes)
    return any(
        parameter.requires_grad and any(part in name for part in parts) for name, parameter in model.named_parameters()
    )
