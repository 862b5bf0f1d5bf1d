"""Modes of training that trade exactness for speed: where image tokens are computed, and how frozen layers are held."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from striate.artifacts import ImageCheck, Region
from striate.config import TrainSection
from striate.data.checks.broken_samples import usable
from striate.data.collate import Collator
from striate.data.samples import Sample
from striate.data.store.sample_columns import SampleColumns
from striate.errors import TrainingError
from striate.models.visual_token_skipping.measure_shift import measure_shift
from striate.models.visual_token_skipping.rule import VisualTokenSkipping, skipping_of
from striate.models.visual_token_skipping.rule_check import check_rule
from striate.models.visual_token_skipping.shift import Shift
from striate.models.visual_token_skipping.visual_compute import VisualCompute
from striate.training.image_check import Checked, check_cost
from striate.training.image_layers import visual_compute
from striate.training.quantization.fp8_linear import frozen_in_fp8
from striate.training.quantization.int8_linear import frozen_in_int8

# How many samples are measured for the steps of image tokens, and how many of them are run at once.
_SHIFT_SAMPLES, _TOGETHER = 64, 4
# Where DistributedDataParallel looks for the names of what it shall leave alone.
_UNSENT = "_ddp_params_and_buffers_to_ignore"


def begin_skipping(
    model: nn.Module,
    region: Region,
    samples: Sequence[Sample],
    collator: Collator,
    config: TrainSection,
    held_out: Sequence[Sample] = (),
) -> ImageCheck | None:
    """Let image tokens skip layers as `config` says, and return what that costs the model, if it is measured.

    The rule is checked on one sample with pictures; steps and cost are measured on more. A model that follows the rule
    already keeps its steps, and has nothing to lose.

    Args:
        model: with its adapters, if it has any.
        region: that trains.
        samples: the training set.
        collator: makes the batches.
        config: its `image_tokens`, `image_also`, `image_shift` and `image_check` are read.
        held_out: samples that nothing is learned from.

    Raises:
        TrainingError: the model follows such a rule already, and not this one; or the rule costs too much.
        ModelError: the rule can't hold for this model, which is left as it came.
    """
    compute, installed = visual_compute(region, config), skipping_of(model)
    if installed is not None:
        if compute is None or installed.compute.layers != compute.layers:
            raise _other_rule(installed.compute, region, compute)
        installed.remove()
    if compute is None:
        return None
    try:
        chosen = usable(collator, _spread(samples) or samples[:1])
        check_rule(model, compute, collator(chosen[:1]))
    except Exception:
        if installed is not None:
            installed.reinstall()
        raise
    shift: Shift = installed.shift if installed else {}
    if config.image_shift and not installed:
        shift = measure_shift(model, compute, _batches(chosen, collator))
    rule = VisualTokenSkipping(model, compute, shift)
    if installed or config.image_check is None:
        return None
    try:
        return check_cost(rule, model, region, config, _checked(samples, held_out, collator))
    except Exception:
        if skipping_of(model) is rule:
            rule.remove()
        raise


def _spread(samples: Sequence[Sample], between: bool = False) -> list[Sample]:
    """Return samples with pictures from all over `samples`; others, `between` these, if there are more."""
    pictured = SampleColumns.of(samples).pictures.nonzero()[0].tolist()
    stride = max(1, -(-len(pictured) // _SHIFT_SAMPLES))
    return [samples[index] for index in pictured[stride // 2 if between else 0 :: stride]]


def _checked(samples: Sequence[Sample], held_out: Sequence[Sample], collator: Collator) -> Checked:
    """Return what a rule is checked on: held-out samples if some have pictures, else others than steps come from."""
    apart = any(sample.images for sample in held_out)
    chosen = usable(collator, _spread(held_out) if apart else _spread(samples, between=True))
    return Checked(_batches(chosen, collator), len(chosen), apart)


def _batches(samples: Sequence[Sample], collator: Collator) -> list[Any]:
    return [collator(samples[start : start + _TOGETHER]) for start in range(0, len(samples), _TOGETHER)]


def end_skipping(model: nn.Module, config: TrainSection) -> None:
    """Let the model compute image tokens in all layers again, if that was a rule of training alone."""
    rule = skipping_of(model)
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


def _other_rule(made: VisualCompute, region: Region, wanted: VisualCompute | None) -> TrainingError:
    """Return the error for a model that computes image tokens in other layers alone."""
    given = "all layers" if wanted is None else f"layers {', '.join(map(str, wanted.layers))}"
    also = sorted(set(made.layers) - set(region.layers))
    layers = ",".join(map(str, also if set(region.layers) <= set(made.layers) else made.layers))
    change = "train.image_also" if set(region.layers) <= set(made.layers) else "select.region"
    use = f"--set train.image_tokens=region{f' --set {change}=ids:{layers}' if layers else ''}"
    return TrainingError(
        f"the model computes image tokens in layers {', '.join(map(str, made.layers))} alone, training in {given}",
        "train.image_tokens=region with the layers that the model was made with",
        f"use {use}, or another start model",
    )
