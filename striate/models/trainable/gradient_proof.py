"""Proves, before step 1, that exactly the chosen tensors receive gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from striate.artifacts import Region
from striate.errors import TrainingError
from striate.models.structure.anatomy import DECODER_LAYER, PROJECTOR, VISION, Anatomy, component_of, layer_of
from striate.models.structure.families import family_of
from striate.models.structure.vision_stack import VisionStack, find_vision_stack
from striate.models.trainable.beside import Beside
from striate.models.trainable.parameter_selection import (
    ALONE,
    checked_anatomy,
    chosen_parameters,
    is_adapted,
)


def prove_trainable(model: nn.Module, region: Region, batch: Mapping[str, Any], beside: Beside = ALONE) -> str:
    """Return one sentence that says which tensors received gradients in one forward and backward pass on `batch`.

    Every chosen tensor must get a finite gradient, every other tensor none. Each layer of the region, the projector and
    each layer of the vision encoder that trains must get one that is not zero; of LoRA's factors every B must, while
    A's is zero as long as B is.
    Random states are set back and gradients dropped: training is the same to the bit with or without the proof.

    Raises:
        TrainingError: the wrong tensors are open, the loss is not finite, or a gradient is missing, not finite,
            zero or where none belongs; the text names tensors.
    """
    anatomy = checked_anatomy(model, region)
    chosen = chosen_parameters(model, region, beside)
    vision = VisionStack(()) if beside.vision == "frozen" else find_vision_stack(model, anatomy)
    _check_open(model, chosen, region)
    with _side_effect_free(model):
        _backward(model, batch)
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        _check_gradients(_Places(anatomy, vision), gradients, chosen, adapted=is_adapted(model))
    return _sentence(_Places(anatomy, vision), chosen, frozen=len(gradients) - len(chosen))


@dataclass(frozen=True)
class _Places:
    """Where a parameter is: its component, and its layer in the decoder or the vision encoder."""

    anatomy: Anatomy
    vision: VisionStack

    def of(self, name: str) -> tuple[str, int | None]:
        component = component_of(self.anatomy, name)
        return component, layer_of(self.anatomy, name) if component != VISION else self.vision.layer_of(name)


def _check_open(model: nn.Module, chosen: set[str], region: Region) -> None:
    if not chosen:
        raise TrainingError(
            f"region {region.spec!r} leaves nothing to train",
            "a region of at least one layer, or a projector that trains",
            "choose a larger region, or use train.projector=full",
        )
    opened = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    closed, extra = sorted(chosen - opened), sorted(opened - chosen)
    if closed:
        raise _disproved(closed, "chosen tensors are frozen", "call apply_region before training")
    if extra:
        raise _disproved(extra, "tensors outside the choice would train", "call apply_region before training")


def _backward(model: nn.Module, batch: Mapping[str, Any]) -> None:
    if "labels" not in batch:
        raise TrainingError(
            "the batch of the proof has no labels", "a training batch", "make it with Collator(..., train=True)"
        )
    device = next(model.parameters()).device
    inputs = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    with torch.enable_grad():
        loss = model(**inputs, use_cache=False).loss
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss of the first batch is {loss.item()}",
                "a finite loss",
                "check that its samples have answers within max_length, or use dtype float32 or bfloat16",
            )
        if not loss.requires_grad:
            raise TrainingError(
                "the loss does not depend on any tensor that trains",
                "a batch and a checkpointing mode that let gradients through",
                "use gradient checkpointing in its non-reentrant form, and a batch with a picture",
            )
        loss.backward()


def _check_gradients(
    places: _Places, gradients: Mapping[str, torch.Tensor | None], chosen: set[str], *, adapted: bool
) -> None:
    stray = sorted(name for name, gradient in gradients.items() if gradient is not None and name not in chosen)
    if stray:
        raise _disproved(stray, "tensors outside the choice received gradients", "this is a fault: please report it")
    without = sorted(name for name in chosen if gradients[name] is None and not _is_route(places.anatomy, name))
    if without:
        raise _disproved(without, "chosen tensors received no gradient", _hint(places, without))
    received = {name: gradient for name in sorted(chosen) if (gradient := gradients[name]) is not None}
    wild = [name for name, gradient in received.items() if not bool(torch.isfinite(gradient).all())]
    if wild:
        raise _disproved(wild, "chosen tensors received gradients that are not finite", "use dtype bfloat16 or float32")
    zero = _all_zero(places, received, adapted)
    if zero:
        raise _disproved(zero, "chosen tensors received only zeros as gradients", _hint(places, zero))


def _all_zero(places: _Places, gradients: Mapping[str, torch.Tensor], adapted: bool) -> list[str]:
    """Return the chosen tensors that no training signal reaches.

    Single tensors of a whole layer may rightly get zeros (a key bias, an expert that no token visits), so with full
    weights a layer fails only when all its tensors do; a LoRA B is judged alone, an expert's again with its layer.
    """
    groups: dict[str | tuple[str, int | None], list[str]] = {}
    for name in gradients:
        if ".lora_A." in name:
            continue
        single = adapted and ".lora_B." in name and ".experts." not in name
        groups.setdefault(name if single else places.of(name), []).append(name)
    reached = {key: any(bool(gradients[name].any()) for name in names) for key, names in groups.items()}
    return [name for key, names in groups.items() if not reached[key] for name in names]


def _is_route(anatomy: Anatomy, name: str) -> bool:
    """Return whether a tensor lies on a way through the family's model that only some batches take."""
    plain = name.replace(".modules_to_save.default", "")
    return any(part in plain for part in family_of(anatomy.model_type).routes)


def _hint(places: _Places, names: Sequence[str]) -> str:
    parts = {places.of(name) for name in names}
    if {component for component, _ in parts} == {VISION} and len(parts) < len(places.vision.names):
        layers = sorted(layer for _, layer in parts if layer is not None)
        return f"nothing in this batch depends on layers {', '.join(map(str, layers))} of the vision encoder: leave" + (
            " them out of train.vision_layers"
        )
    if {component for component, _ in parts} <= {PROJECTOR, VISION}:
        settings = [f"train.{name.partition(' ')[0]}=frozen" for name in sorted({component for component, _ in parts})]
        return f"use a batch with a picture in it; on text-only data set {' and '.join(settings)}"
    return "use gradient checkpointing in its non-reentrant form (use_reentrant=False), and labels on answer tokens"


def _disproved(names: Sequence[str], what: str, hint: str) -> TrainingError:
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return TrainingError(
        f"the training proof failed: {len(names)} {what}: {shown}",
        "gradients in what shall train, and nowhere else",
        hint,
    )


def _sentence(places: _Places, chosen: set[str], frozen: int) -> str:
    found = Counter(places.of(name)[0] for name in chosen)
    layers = {component: {places.of(name) for name in chosen if places.of(name)[0] == component} for component in found}
    parts = []
    if found[DECODER_LAYER]:
        depth = places.anatomy.num_layers
        parts.append(f"{found[DECODER_LAYER]} tensors in {len(layers[DECODER_LAYER])} of {depth} decoder layers")
    if found[PROJECTOR]:
        parts.append(f"{found[PROJECTOR]} tensors of the projector")
    if found[VISION]:
        depth = len(places.vision.names)
        parts.append(f"{found[VISION]} tensors in {len(layers[VISION])} of {depth} layers of the vision encoder")
    return f"{' and '.join(parts)} received finite gradients; the other {frozen} tensors received none."


@contextmanager
def _side_effect_free(model: nn.Module) -> Iterator[None]:
    """Set random states back and drop gradients afterwards, also when the proof fails."""
    devices = sorted(
        {parameter.device.index or 0 for parameter in model.parameters() if parameter.device.type == "cuda"}
    )
    model.zero_grad(set_to_none=True)
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        model.zero_grad(set_to_none=True)
