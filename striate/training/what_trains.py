"""What a training's config opens of a model: parts beside the region, and PEFT's config of the adapters."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig
from torch import nn

from striate.artifacts import Region
from striate.config import TrainSection
from striate.errors import SpecError
from striate.models.forecast.layer_shapes import ModelShape
from striate.models.forecast.settings import Settings
from striate.models.structure.meta_model import Blueprint
from striate.models.structure.vision_stack import find_vision_stack
from striate.models.trainable.apply import apply_region, lora_config
from striate.models.trainable.beside import Beside
from striate.models.trainable.counts import adapter_parameters
from striate.selectors.spec.grammar import resolve
from striate.selectors.spec.required_scores import parse_unscored


def encoder_layers_of(config: TrainSection, depth: int) -> Region:
    """Return which of the vision encoder's `depth` layers train.

    Raises:
        SpecError: `vision_layers` can't be read, or names no layers of this encoder.
    """
    try:
        return resolve(parse_unscored("train.vision_layers", config.vision_layers), depth)
    except SpecError as error:
        where = f"train.vision_layers, of {depth} layers of the vision encoder: {error.given}"
        raise SpecError(where, error.allowed, error.next_step) from error


def beside_of(model: nn.Module, config: TrainSection) -> Beside:
    """Return what trains beside the region; `model` may lie on the meta device.

    Raises:
        ModelError: layers of the vision encoder shall train, and it has none.
        SpecError: as `encoder_layers_of`.
    """
    if config.vision == "frozen":
        return Beside(config.projector)
    depth = len(find_vision_stack(model).names)
    return Beside(config.projector, config.vision, encoder_layers_of(config, depth))


def settings_of(config: TrainSection, shape: ModelShape) -> Settings:
    """Return the settings of a forecast that follow from `config`; batch and tokens are the defaults.

    Raises:
        SpecError: as `encoder_layers_of`.
    """
    depth = len(shape.encoder)
    chosen = encoder_layers_of(config, depth).layers if config.vision != "frozen" and depth else ()
    return Settings(
        method=config.method,
        r=config.lora.r,
        modules=config.lora.modules,
        rank_pattern=tuple(config.lora.rank_pattern.items()),
        use_dora=config.lora.use_dora,
        projector=config.projector,
        vision=config.vision,
        vision_chosen=frozenset(chosen),
        frozen=config.frozen,
        optimizer=config.optimizer,
    )


def trained_counts(plan: Blueprint, region: Region, config: TrainSection) -> dict[str, int]:
    """Return how many parameters train with `config`, with LoRA and in full, as far as the model has a place for them.

    A LoRA pair on a matrix of shape (out, in) has r * (in + out) parameters (Hu et al., arXiv 2106.09685).

    Raises:
        StriateError: as `lora_config` and `beside_of`.
    """
    beside, counts = beside_of(plan.model, config), {}
    if region.layers or "lora" in (beside.projector, beside.vision):
        counts[f"LoRA, r {config.lora.r}"] = adapter_parameters(plan.model, adapters_of(plan.model, region, config))
    if "lora" not in (beside.projector, beside.vision):
        parts = {"vision": beside.vision, "vision_region": beside.vision_region}
        counts["full"] = apply_region(plan.model, region, "full", beside.projector, **parts).trainable  # type: ignore[arg-type]
    return counts


def adapters_of(model: Any, region: Region, config: TrainSection) -> LoraConfig:
    """Return PEFT's config of the adapters that `config` asks for; `model` may lie on the meta device.

    Raises:
        StriateError: as `lora_config` and `beside_of`.
    """
    beside = beside_of(model, config)
    return lora_config(
        model,
        region,
        r=config.lora.r,
        alpha=config.lora.alpha,
        dropout=config.lora.dropout,
        modules=config.lora.modules,
        use_rslora=config.lora.use_rslora,
        use_dora=config.lora.use_dora,
        rank_pattern=config.lora.rank_pattern,
        alpha_pattern=config.lora.alpha_pattern,
        projector=beside.projector,
        vision=beside.vision,
        vision_region=beside.vision_region,
    )
