"""Unfreezes the region and the projector, builds the LoRA config, and counts what trains."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from peft import LoraConfig
from torch import nn

from striate.artifacts import Region, Trainable
from striate.errors import TrainingError
from striate.models.structure.anatomy import (
    DECODER_LAYER,
    PROJECTOR,
    VISION,
    Anatomy,
    component_of,
    find_anatomy,
    layer_of,
    unwrap,
)
from striate.models.structure.decoder_stack import name_of
from striate.models.structure.vision_modules import part_of
from striate.models.trainable.beside import Beside, Part
from striate.models.trainable.counts import count_trainable
from striate.models.trainable.lora_modules import ALL, check_patterns, chosen_modules, inner_name
from striate.models.trainable.parameter_selection import (
    can_train,
    checked_anatomy,
    chosen_parameters,
    is_adapted,
    vision_layers,
)
from striate.models.trainable.peft_names import not_rewritten

METHODS = ("full", "lora", "qlora")
_ADAPTED = (DECODER_LAYER, PROJECTOR, VISION)


def apply_region(
    model: nn.Module,
    region: Region,
    method: str = "full",
    projector: Part = "full",
    *,
    vision: Part = "frozen",
    vision_region: Region | None = None,
) -> Trainable:
    """Return what trains after freezing all of `model` and opening the region's layers and the projector.

    `full` opens the weights themselves. `lora` opens the adapters of a model that PEFT has wrapped with `lora_config`,
    and so does `qlora`, on weights in 4 bits. `projector`, `vision` and `vision_region` are those of `lora_config`.

    Raises:
        TrainingError: an unknown method, a region of another depth, nothing to train, weights that can't train,
            or a method that does not fit the model.
        ModelError: layers of the vision encoder shall train, and it has none.
    """
    beside = Beside(projector, vision, vision_region)
    _check_method(model, method)
    chosen = chosen_parameters(model, region, beside)
    if not chosen:
        raise _nothing_trains(region, beside)
    _check_parts(model, chosen, beside)
    parameters = dict(model.named_parameters())
    fixed = [name for name in chosen if not parameters[name].is_floating_point()]
    if fixed:
        raise TrainingError(
            f"{len(fixed)} chosen tensors are quantised and can't be trained in full (for example {fixed[0]})",
            "method lora on quantised weights, or full on weights in floating point",
            "use train.method=lora",
        )
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in chosen)
    return count_trainable(model, region, method)


def lora_config(
    model: nn.Module,
    region: Region,
    *,
    r: int = 128,
    alpha: int = 256,
    dropout: float = 0.05,
    modules: str | Sequence[str] = ALL,
    use_rslora: bool = False,
    use_dora: bool = False,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, int] | None = None,
    projector: Part = "full",
    vision: Part = "frozen",
    vision_region: Region | None = None,
) -> LoraConfig:
    """Return a LoraConfig for the linear layers of the region, and the projector as a fully trained module.

    LoRA (Hu et al., 2106.09685): W' = W + alpha / r * B A. Targets are full module names, so that no block of the
    vision encoder gets an adapter because it has the same number or name. Left out are linear layers that the loss
    never reaches, and those whose names PEFT takes for experts of every layer on some mixture-of-experts models.

    Args:
        model: a plain LVLM.
        region: which decoder layers get adapters.
        r: the rank.
        alpha: of the scale alpha / r.
        dropout: of the adapters' inputs.
        modules: which linear layers: `all`, `attention`, `mlp`, or names, one or several (`gate+up`).
        use_rslora: scale by alpha / sqrt(r) (rsLoRA, Kalajdzievski, 2312.03732).
        use_dora: train the norm of each output's weights apart from their direction (DoRA, Liu et al., 2402.09353).
        rank_pattern: another rank for modules of a name, as PEFT reads it.
        alpha_pattern: another alpha.
        projector: `full` trains a copy of it (PEFT's `modules_to_save`), `lora` adapters on its linear layers, so that
            the adapter is plain LoRA as vLLM serves it, `frozen` nothing of it.
        vision: the same of the vision encoder's layers.
        vision_region: which of these train; None for all that features pass.

    Raises:
        TrainingError: a region of another depth, an empty one, no linear layer in it, a name that fits none, or
            settings out of range.
        ModelError: layers of the vision encoder shall train, and it has none.
    """
    anatomy = checked_anatomy(model, region)
    patterns = {"rank_pattern": dict(rank_pattern or {}), "alpha_pattern": dict(alpha_pattern or {})}
    _check_lora((r, *patterns["rank_pattern"].values()), (alpha, *patterns["alpha_pattern"].values()), dropout)
    if is_adapted(model):
        raise TrainingError(
            "the model has adapters already", "a plain model", "load it with merge=True, or unload the adapters"
        )
    _check_embeddings(model)
    beside = Beside(projector, vision, vision_region)
    words = modules if isinstance(modules, str) else "+".join(modules)
    targets = _targets(model, anatomy, region, beside, words)
    for setting, pattern in patterns.items():
        check_patterns(setting, pattern, targets)
    return LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        use_rslora=use_rslora,
        use_dora=use_dora,
        **patterns,
        bias="none",
        task_type=_task_type(model),
        target_modules=targets,
        modules_to_save=_trained_modules(model, anatomy, beside) or None,
    )


def _targets(model: nn.Module, anatomy: Anatomy, region: Region, beside: Beside, modules: str) -> list[str]:
    """Return the names of the linear layers that get adapters: of the region, the projector and the vision encoder."""
    core, vision = unwrap(model), vision_layers(model, beside)
    linears = [name for name, module in core.named_modules() if _is_linear(module) and can_train(name)]
    linears = not_rewritten(core, [name for name in linears if component_of(anatomy, f"{name}.weight") in _ADAPTED])
    inner = {name: inner_name(anatomy, name) for name in linears if layer_of(anatomy, name) in region.layers}
    chosen = {DECODER_LAYER: chosen_modules(inner, modules) if inner else []}
    if beside.projector == "lora" and anatomy.projector_names:
        chosen[PROJECTOR] = [name for name in linears if component_of(anatomy, f"{name}.weight") == PROJECTOR]
    if vision and beside.vision == "lora":
        chosen[VISION] = [name for name in linears if vision.layer_of(name) is not None]
    for component, names in chosen.items():
        if not names and (component != DECODER_LAYER or region.layers or len(chosen) == 1):
            raise no_linear(component, region)
    kept = {name for names in chosen.values() for name in names}
    return [name for name in linears if name in kept]


def no_linear(component: str, region: Region) -> TrainingError:
    """Return the error for a part that shall have adapters and has no linear layer for them."""
    if component == DECODER_LAYER:
        return TrainingError(
            f"region {region.spec!r} gives LoRA no linear layer to adapt",
            "a region of at least one decoder layer",
            "choose a larger region; the projector alone trains with train.projector=lora, or train.method=full",
        )
    setting = component.partition(" ")[0]
    return TrainingError(
        f"the {component} has no linear layer that LoRA could adapt",
        f"train.{setting} frozen or full",
        f"use --set train.{setting}=full",
    )


def _check_embeddings(model: nn.Module) -> None:
    """Refuse a model whose embeddings transformers does not find: PEFT asks for them."""
    core = unwrap(model)
    if part_of(core.get_input_embeddings) is None:
        raise TrainingError(
            f"{name_of(core)} can't be adapted with LoRA: transformers does not say where its embeddings are",
            "train.method=full on this model, or LoRA on another",
            "set train.method=full",
        )


def _is_linear(module: nn.Module) -> bool:
    """Return whether a module maps one tensor to one tensor: some routers are linear layers that return more."""
    # Attention of torch's own reads the weight of its output layer, past any adapter.
    if type(module).__name__ == "NonDynamicallyQuantizableLinear":
        return False
    # Linear layers in 4 bits bring their own forward pass, and still map one tensor to one.
    plain = type(module).forward is nn.Linear.forward or hasattr(getattr(module, "weight", None), "quant_state")
    return isinstance(module, nn.Linear) and plain


def _task_type(model: nn.Module) -> str | None:
    """Return PEFT's task type, whose wrapper hands `inputs_embeds` on: none for a model that does not take it."""
    return "CAUSAL_LM" if "inputs_embeds" in inspect.signature(unwrap(model).forward).parameters else None


def _trained_modules(model: nn.Module, anatomy: Anatomy, beside: Beside) -> list[str]:
    """Return the modules for PEFT to copy and train: the projector's, of a list its items, and the encoder's layers."""
    modules = dict(unwrap(model).named_modules())
    names = []
    for name in anatomy.projector_names if beside.projector == "full" else ():
        module = modules[name]
        is_list = isinstance(module, nn.ModuleList)
        names.extend([f"{name}.{child}" for child, _ in module.named_children()] if is_list else [name])
    vision = vision_layers(model, beside) if beside.vision == "full" else None
    return [*names, *(vision.names if vision else ())]


def is_quantized(model: nn.Module) -> bool:
    """Return whether `model` holds weights in 4 bits."""
    return any(getattr(parameter, "quant_state", None) is not None for parameter in model.parameters())


def _check_method(model: nn.Module, method: Any) -> None:
    if method not in METHODS:
        raise TrainingError(f"unknown method {method!r}", ", ".join(METHODS), "set train.method")
    adapted = is_adapted(model)
    if method in ("lora", "qlora") and not adapted:
        raise TrainingError(
            f"method {method} needs adapters, and the model has none",
            "a model from peft.get_peft_model",
            "wrap it first: peft.get_peft_model(model, striate.lora_config(model, region))",
        )
    if method == "full" and adapted:
        raise TrainingError(
            "method full would train the weights under the model's adapters",
            "a plain model for full, adapters for lora",
            "load the model with merge=True, or use method lora",
        )
    if method == "qlora" and not is_quantized(model):
        raise TrainingError(
            "method qlora needs weights in 4 bits, and the model's are not",
            "a model from striate.models.io.quantized.load_quantized, or method lora",
            "load it so, or use train.method=lora",
        )


def _check_lora(ranks: Sequence[int], alphas: Sequence[int], dropout: float) -> None:
    if min(*ranks, *alphas) < 1 or not 0 <= dropout < 1:
        raise TrainingError(
            f"LoRA settings r={min(ranks)}, alpha={min(alphas)}, dropout={dropout}",
            "r >= 1, alpha >= 1, 0 <= dropout < 1",
            "the paper's are r=128, alpha=256, dropout=0.05",
        )


def _nothing_trains(region: Region, beside: Beside) -> TrainingError:
    return TrainingError(
        f"region {region.spec!r} with {beside.words} leaves nothing to train",
        "a region of at least one layer, or a projector that trains",
        "choose a larger region, or use train.projector=full",
    )


def _check_parts(model: nn.Module, chosen: set[str], beside: Beside) -> None:
    """Raise where the projector or the vision encoder shall train, and the model was not wrapped so."""
    anatomy = find_anatomy(model)
    reached = {component_of(anatomy, name) for name in chosen}
    for component, part in ((PROJECTOR, beside.projector), (VISION, beside.vision)):
        there = component != PROJECTOR or anatomy.projector_names
        if part != "frozen" and there and component not in reached:
            raise TrainingError(
                f"{component.partition(' ')[0]}={part!r}, and the model has nothing to train so in its {component}",
                "a model that PEFT has wrapped with the same projector and vision; lora with method lora or qlora",
                "pass the same projector and vision to lora_config and to apply_region",
            )
