"""Unfreezes the region and the projector, builds the LoRA config, and counts what trains."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from peft import LoraConfig
from torch import nn

from striate.artifacts import ComponentCount, Region, Trainable
from striate.errors import TrainingError
from striate.models.structure.anatomy import COMPONENTS, DECODER_LAYER, Anatomy, component_of, layer_of, unwrap
from striate.models.structure.decoder_stack import name_of
from striate.models.structure.vision_modules import part_of
from striate.models.trainable.lora_modules import ALL, check_patterns, chosen_modules, inner_name
from striate.models.trainable.parameter_selection import can_train, checked_anatomy, chosen_parameters, is_adapted
from striate.models.trainable.peft_names import not_rewritten

METHODS = ("full", "lora", "qlora")


def apply_region(model: nn.Module, region: Region, method: str = "full", train_projector: bool = True) -> Trainable:
    """Return what trains after freezing all of `model` and opening the region's layers and the projector.

    `full` opens the weights themselves. `lora` opens the adapters of a model that PEFT has wrapped with `lora_config`,
    and so does `qlora`, on weights in 4 bits.

    Raises:
        TrainingError: an unknown method, a region of another depth, nothing to train, weights that can't train,
            or a method that does not fit the model.
    """
    _check_method(model, method)
    chosen = chosen_parameters(model, region, train_projector=train_projector)
    if not chosen:
        raise _nothing_trains(region, train_projector)
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
    train_projector: bool = True,
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
        train_projector: whether the projector trains.

    Raises:
        TrainingError: a region of another depth, an empty one, no linear layer in it, a name that fits none, or
            settings out of range.
    """
    anatomy = checked_anatomy(model, region)
    patterns = {"rank_pattern": dict(rank_pattern or {}), "alpha_pattern": dict(alpha_pattern or {})}
    _check_lora((r, *patterns["rank_pattern"].values()), (alpha, *patterns["alpha_pattern"].values()), dropout)
    if is_adapted(model):
        raise TrainingError(
            "the model has adapters already", "a plain model", "load it with merge=True, or unload the adapters"
        )
    _check_embeddings(model)
    targets = [
        name
        for name, module in unwrap(model).named_modules()
        if _is_linear(module) and layer_of(anatomy, name) in region.layers and can_train(name)
    ]
    targets = not_rewritten(unwrap(model), targets)
    if targets:
        words = modules if isinstance(modules, str) else "+".join(modules)
        targets = chosen_modules({name: inner_name(anatomy, name) for name in targets}, words)
    for setting, pattern in patterns.items():
        check_patterns(setting, pattern, targets)
    if not targets:
        raise TrainingError(
            f"region {region.spec!r} gives LoRA no linear layer to adapt",
            "a region of at least one decoder layer",
            "choose a larger region; the projector alone trains with train.method=full and region none",
        )
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
        modules_to_save=_trained_modules(model, anatomy) if train_projector else None,
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
    # Linear layers in 4 bits bring their own forward pass, and still map one tensor to one.
    plain = type(module).forward is nn.Linear.forward or hasattr(getattr(module, "weight", None), "quant_state")
    return isinstance(module, nn.Linear) and plain


def _task_type(model: nn.Module) -> str | None:
    """Return PEFT's task type, whose wrapper hands `inputs_embeds` on: none for a model that does not take it."""
    return "CAUSAL_LM" if "inputs_embeds" in inspect.signature(unwrap(model).forward).parameters else None


def _trained_modules(model: nn.Module, anatomy: Anatomy) -> list[str]:
    """Return the projector's modules for PEFT to copy and train; of a list of modules, its items."""
    modules = dict(unwrap(model).named_modules())
    names = []
    for name in anatomy.projector_names:
        module = modules[name]
        is_list = isinstance(module, nn.ModuleList)
        names.extend([f"{name}.{child}" for child, _ in module.named_children()] if is_list else [name])
    return names


def count_trainable(model: nn.Module, region: Region, method: str) -> Trainable:
    """Return the parameters of `model`, and those with `requires_grad`, by component and by decoder layer.

    `tensors` counts the tensors that train. PEFT's frozen original of the projector is not counted twice.
    """
    anatomy = checked_anatomy(model, region)
    components = {component: _Count() for component in COMPONENTS}
    layers: defaultdict[int, _Count] = defaultdict(_Count)
    for name, parameter in model.named_parameters():
        if ".original_module." in name:
            continue
        components[component_of(anatomy, name)].add(parameter)
        layer = layer_of(anatomy, name)
        if layer is not None:
            layers[layer].add(parameter)
    return Trainable(
        method=method,
        region=region,
        components=tuple(count.row(component) for component, count in components.items()),
        layers=tuple(layers[index].row(f"{DECODER_LAYER} {index}") for index in range(anatomy.num_layers)),
    )


def describe(trainable: Trainable) -> str:
    """Return in words and counts what trains and what stays frozen."""
    region = trainable.region
    share = trainable.trainable / max(1, trainable.total)
    parts = [
        f"{row.component}{'s' if row.component == DECODER_LAYER else ''} {row.trainable:,} of {row.total:,}"
        for row in trainable.components
        if row.trainable
    ]
    layers = ", ".join(map(str, region.layers)) or "none"
    return (
        f"{trainable.trainable:,} of {trainable.total:,} parameters train ({share:.1%}, method {trainable.method}):"
        f" {'; '.join(parts) or 'nothing'}. {len(region)} of {region.num_layers} decoder layers: {layers}."
        " All else is frozen."
    )


def is_quantized(model: nn.Module) -> bool:
    """Return whether `model` holds weights in 4 bits."""
    return any(getattr(parameter, "quant_state", None) is not None for parameter in model.parameters())


class _Count:
    def __init__(self) -> None:
        self.total = self.trainable = self.tensors = 0

    def add(self, parameter: nn.Parameter) -> None:
        """Count one tensor; 4-bit weights hold two values a byte and say how many they stand for."""
        state = getattr(parameter, "quant_state", None)
        size = state.shape.numel() if state is not None else parameter.numel()
        self.total += size
        if parameter.requires_grad:
            self.trainable += size
            self.tensors += 1

    def row(self, component: str) -> ComponentCount:
        return ComponentCount(component=component, total=self.total, trainable=self.trainable, tensors=self.tensors)


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


def _nothing_trains(region: Region, train_projector: bool) -> TrainingError:
    return TrainingError(
        f"region {region.spec!r} with train_projector={train_projector} leaves nothing to train",
        "a region of at least one layer, or train_projector=true",
        "choose a larger region or open the projector",
    )
