"""Sharded weights (FSDP2, ZeRO-3): what can't be trained so, and which modules are gathered as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

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


def reshard(model: nn.Module) -> None:
    """Let every process keep its shards alone again, after a forward pass without a backward pass (FSDP2)."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


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


def gather_whole_layers(model: nn.Module, encoder_layers: Iterable[nn.Module]) -> None:
    """Let the weights of each decoder layer, and of each of `encoder_layers`, be gathered at once, around its call.

    For FSDP2 that is its wrapping policy, unless the launcher's config has one; for ZeRO-3 these are leaf modules: its
    hooks on the modules inside would break a compiled layer into as many pieces.
    """
    if sharding() == "fsdp":
        # transformers lists classes that a model need not have, as of a text encoder, which Accelerate refuses.
        listed = set(getattr(unwrap(model), "_no_split_modules", None) or ())
        classes = {type(module).__name__ for module in model.modules()} & listed
        classes |= {type(layer).__name__ for layer in decoder_layers(model)}
        os.environ.setdefault(WRAP_VARIABLE, ",".join(sorted(classes)))
    elif sharding() == "deepspeed":
        mark = import_module("deepspeed.utils").set_z3_leaf_module
        for layer in (*decoder_layers(model), *encoder_layers):
            mark(layer, True)
            if any(parameter.requires_grad for parameter in layer.parameters()):
                layer.register_forward_pre_hook(_with_input_gradient, with_kwargs=True)


def prefetch_whole_layers(model: nn.Module, settings: dict[str, Any]) -> None:
    """Let ZeRO-3 gather a layer while the one before is computed, unless DeepSpeed's `settings` say how much ahead."""
    zero, name = settings["zero_optimization"], "stage3_prefetch_bucket_size"
    if zero.get(name, "auto") == "auto":
        zero[name] = max(sum(part.numel() for part in layer.parameters()) for layer in decoder_layers(model))


def _with_input_gradient(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the arguments with hidden states that come first and need a gradient.

    DeepSpeed takes the gradients of a leaf module when the first argument has its own: without, it would take zeros.
    """
    hidden, *rest = args or (kwargs.pop("hidden_states"),)
    if torch.is_grad_enabled() and not hidden.requires_grad:
        hidden = hidden.detach().requires_grad_()
    return (hidden, *rest), kwargs


def may_lack_gradients(model: nn.Module) -> bool:
    """Return whether some tensors that train may take no part in a batch: experts, and a family's other routes.

    DistributedDataParallel calls them unused parameters.
    """
    parts = (_EXPERTS, *family_of(unwrap(model).config.model_type).routes)
    return any(
        parameter.requires_grad and any(part in name for part in parts) for name, parameter in model.named_parameters()
    )
