"""Modes of training that trade exactness for speed: where image tokens are computed, and how frozen layers are held."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from striate.artifacts import Region
from striate.config import TrainSection
from striate.errors import TrainingError
from striate.models.visual_token_skipping.measure_shift import measure_shift
from striate.models.visual_token_skipping.rule import ImageSkip, rule_of
from striate.models.visual_token_skipping.rule_check import check_rule
from striate.models.visual_token_skipping.shift import Shift
from striate.training.quantization.fp8_linear import frozen_in_fp8
from striate.training.quantization.int8_linear import frozen_in_int8

# Where DistributedDataParallel looks for the names of what it shall leave alone.
_UNSENT = "_ddp_params_and_buffers_to_ignore"


def begin_modes(model: nn.Module, region: Region, batches: Sequence[Mapping[str, Any]], config: TrainSection) -> Region:
    """Return the region as checkpoints keep it, with image tokens from now on computed where `config` says.

    Args:
        model: with its adapters, if it has any.
        region: that trains, with the layers that compute image tokens too.
        batches: training batches with pictures: the rule is checked on the first, and steps are measured on all.
        config: `image_tokens` and `image_shift` are read. A model with a rule keeps its steps.

    Raises:
        TrainingError: the model follows such a rule already, and not this one.
        ModelError: the rule can't hold for this model.
    """
    installed = rule_of(model)
    if installed is not None:
        if config.image_tokens == "all" or installed.region.computing != region.computing:
            raise _other_rule(installed.region, region, config)
        installed.remove()
    plain = region.model_copy(update={"image_tokens": "all", "image_layers": (), "image_shift": False})
    if config.image_tokens == "all":
        return plain
    check_rule(model, region, batches[0])
    shift: Shift = installed.shift if installed else {}
    if config.image_shift and not installed:
        shift = measure_shift(model, region, batches)
    ruled = region.model_copy(update={"image_shift": bool(shift)})
    ImageSkip(model, ruled, shift)
    return ruled.model_copy(update={"image_tokens": "region"}) if config.image_tokens == "region" else plain


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
    hold, words = {"fp8": (frozen_in_fp8, "8-bit floats"), "int8": (frozen_in_int8, "8-bit integers")}[config.frozen]
    with hold(model, region, say) as count, _buffers_of_their_own(model):
        if count:
            say(f"{count} frozen linear layers are held in {words} while training")
        yield


@contextmanager
def _buffers_of_their_own(model: nn.Module) -> Iterator[None]:
    """Let several processes not send each other the model's buffers, which matrices in 8 bits are, in every step."""
    setattr(model, _UNSENT, [name for name, _ in model.named_buffers()])
    try:
        yield
    finally:
        delattr(model, _UNSENT)


def _other_rule(found: Region, region: Region, config: TrainSection) -> TrainingError:
    """Return the error for a model that computes image tokens in other layers alone."""
    wanted = "all layers" if config.image_tokens == "all" else f"layers {', '.join(map(str, region.computing))}"
    also = f" --set train.image_also=ids:{','.join(map(str, found.image_layers))}" if found.image_layers else ""
    return TrainingError(
        f"the model computes image tokens in layers {', '.join(map(str, found.computing))} alone, training in {wanted}",
        "train.image_tokens=region with the layers that the model was made with",
        f"use --set train.image_tokens=region --set select.region={found.spec}{also}, or another start model",
    )
