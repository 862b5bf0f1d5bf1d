"""What a training's config opens of a model: parts beside the region, and PEFT's config of the adapters."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig
from torch import nn

from striate.artifacts import Region
from striate.config import TrainSection
from striate.errors import SpecError
from striate.models.structure.vision_stack import find_vision_stack
from striate.models.trainable.apply import lora_config
from striate.models.trainable.beside import Beside
from striate.selectors.spec.grammar import resolve
from striate.selectors.spec.required_scores import parse_unscored


def encoder_layers_of(config: TrainSection, depth: int) -> tuple[int, ...]:
    """Return which of the vision encoder's `depth` layers train; none where it is frozen, or has no layers."""
    return encoder_region(config, depth).layers if config.vision != "frozen" and depth else ()


def encoder_region(config: TrainSection, depth: int) -> Region:
    """Return which of the vision encoder's `depth` layers `vision_layers` names.

    Raises:
        SpecError: it can't be read, or names no layers of this encoder.
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
        SpecError: as `encoder_region`.
    """
    if config.vision == "frozen":
        return Beside(config.projector)
    depth = len(find_vision_stack(model).names)
    return Beside(config.projector, config.vision, encoder_region(config, depth))


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
