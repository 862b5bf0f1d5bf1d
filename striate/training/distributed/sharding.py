"""What training on several processes needs to know before it begins, and how its result comes together."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import nn

from striate.config import MachineSection, TrainSection
from striate.data.samples import Sample
from striate.errors import TrainingError
from striate.models.structure.anatomy import decoder_layers, unwrap
from striate.models.structure.families import family_of
from striate.training.batching.micro_batches import Share, Touch
from striate.training.distributed.ranks import Processes, unshard
from striate.training.precision import MasterWeights

LAYERS_VARIABLE = "FSDP_TRANSFORMER_CLS_TO_WRAP"
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
    kind, processes = sharding(), Processes.launched().count
    if not kind:
        return
    if processes == 1:
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
    whole = (
        (config.method == "qlora", "method qlora"),
        (config.resample.active, "resample.active"),
        (config.optimizer != "adamw", f"optimizer {config.optimizer}"),
        # Its engine casts whatever a module keeps to one format, 8-bit matrices and their scales too.
        (kind == "deepspeed" and config.frozen != "exact", f"frozen {config.frozen}"),
    )
    for unfit, why in whole:
        if unfit:
            raise TrainingError(
                f"train.{why} with weights sharded by {kind}",
                "every process with all weights (configs/accelerate/ddp.yaml)",
                "use that, or another setting",
            )


def share_of(processes: Processes, micro_batch: int, config: TrainSection, machine: MachineSection) -> Share:
    """Return which samples of a step are this process's, and how they are batched."""
    return Share(micro_batch, machine.pack_tokens if config.packing else None, processes.index, processes.count)


def touch_of(processes: Processes, config: TrainSection, samples: Sequence[Sample]) -> Touch:
    """Return which batches must have a picture.

    Processes that share gradients must all give one to the projector, at the exchange; those that share weights must
    run the same modules in every batch.
    """
    if processes.count == 1 or not any(sample.images for sample in samples):
        return ""
    if sharding():
        return "all"
    return "last" if config.train_projector else ""


def name_layers(model: nn.Module) -> None:
    """Tell Accelerate which modules FSDP shards as one, unless the launcher's config does.

    transformers lists classes for it that a model need not have, such as those of a text encoder; Accelerate refuses.
    """
    if sharding() == "fsdp":
        listed = set(getattr(unwrap(model), "_no_split_modules", None) or ())
        found = {type(module).__name__ for module in model.modules()} & listed
        found |= {type(layer).__name__ for layer in decoder_layers(model)}
        os.environ.setdefault(LAYERS_VARIABLE, ",".join(sorted(found)))


def is_uneven(model: nn.Module) -> bool:
    """Return whether some tensors that train may take no part in a batch: experts, and a family's other routes."""
    parts = (_EXPERTS, *family_of(unwrap(model).config.model_type).routes)
    return any(
        parameter.requires_grad and any(part in name for part in parts) for name, parameter in model.named_parameters()
    )


def make_whole(model: nn.Module, weights: MasterWeights, names: set[str]) -> None:
    """Make a sharded model good for saving on the first process; others are whole already.

    Args:
        model: as training left it.
        weights: whose number formats are given back.
        names: the tensors that trained; all that an adapter's folder holds.
    """
    if sharding():
        unshard(model, names if hasattr(model, "peft_config") else None, weights.dtypes)


def peak_of_all(gib: float, device: torch.device) -> float:
    """Return the largest peak memory of all processes, in GiB."""
    if Processes.launched().count == 1:
        return gib
    found = torch.tensor(gib, device=device if device.type == "cuda" else "cpu")
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return float(found)
