"""Modes of training that trade exactness for speed: where image tokens are computed, and how frozen layers are held."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from striate.artifacts import Region
from striate.config import TrainSection
from striate.errors import TrainingError
from striate.models.image_skip import ImageSkip, rule_of
from striate.models.image_skip_check import check_rule
from striate.training.frozen_fp8 import frozen_in_fp8


def begin_modes(model: nn.Module, region: Region, batch: Mapping[str, Any], config: TrainSection) -> Region:
    """Return the region as checkpoints keep it, with image tokens from now on computed where `config` says.

    Args:
        model: with its adapters, if it has any.
        region: that trains.
        batch: a training batch with a picture, on which the rule is checked.
        config: `image_tokens` is read.

    Raises:
        TrainingError: the model follows such a rule already, and not this one.
        ModelError: the rule can't hold for this model.
    """
    installed = rule_of(model)
    if installed is not None:
        if config.image_tokens == "all" or installed.region.layers != region.layers:
            raise _other_rule(installed.region, region, config)
        installed.remove()
    if config.image_tokens == "all":
        return region
    check_rule(model, region, batch)
    ImageSkip(model, region)
    return region.model_copy(update={"image_tokens": "region"}) if config.image_tokens == "region" else region


def end_modes(model: nn.Module, config: TrainSection) -> None:
    """Let the model compute image tokens in all layers again, if that was a rule of training alone."""
    rule = rule_of(model)
    if rule is not None and config.image_tokens != "region":
        rule.remove()


@contextmanager
def frozen_format(model: nn.Module, region: Region, config: TrainSection, say: Callable[[str], None]) -> Iterator[None]:
    """Hold what is frozen as `config.frozen` says for a while; `say` is told in one line how much that is."""
    if config.frozen == "exact":
        yield
        return
    with frozen_in_fp8(model, region, say) as count:
        if count:
            say(f"{count} frozen linear layers are held in 8-bit floats while training")
        yield


def _other_rule(found: Region, region: Region, config: TrainSection) -> TrainingError:
    """Return the error for a model that computes image tokens in other layers alone."""
    wanted = "all layers" if config.image_tokens == "all" else f"layers {', '.join(map(str, region.layers))}"
    return TrainingError(
        f"the model computes image tokens in layers {', '.join(map(str, found.layers))} alone, training in {wanted}",
        "train.image_tokens=region with the region that the model was made with",
        f"use --set train.image_tokens=region --set select.region={found.spec}, or another start model",
    )
