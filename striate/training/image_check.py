"""What a rule for image tokens costs the start model on a user's own conversations, before it trains by it.

The answers' cross entropy by the rule, with its constant steps, against that of whole layers (`train.image_check`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from striate.artifacts import ImageCheck, Region
from striate.config import TrainSection
from striate.errors import TrainingError
from striate.models.interventions.eval_mode import evaluating
from striate.models.io.placing import on_device
from striate.models.visual_token_skipping.measure_shift import measure_shift
from striate.models.visual_token_skipping.rule import VisualTokenSkipping
from striate.models.visual_token_skipping.visual_compute import VisualCompute
from striate.selectors.spec.grammar import resolve
from striate.training.batching.label_positions import ANSWERS, label_positions
from striate.training.distributed.ranks import Ranks
from striate.training.loss import answer_tally

# What is tried beside the region where the rule costs too much, of few layers first; and on how many batches.
WIDER = ("bottom:25%", "middle:25%", "top:25%", "uniform:50%", "bottom:50%")
_TRIED_ON = 4
Batches = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Checked:
    """Conversations with pictures that a rule is checked on.

    Attributes:
        batches: with labels, on the CPU.
        samples: how many they are.
        held_out: whether training does not learn from them.
    """

    batches: Batches
    samples: int
    held_out: bool

    @property
    def told(self) -> str:
        """What they are, in words."""
        return f"{self.samples} {'held-out' if self.held_out else 'training'} samples with pictures"


def check_cost(
    rule: VisualTokenSkipping, model: nn.Module, region: Region, config: TrainSection, checked: Checked
) -> ImageCheck | None:
    """Return what `rule`, which is on `model`, costs; None where no answer can be measured.

    Raises:
        TrainingError: more than `config.image_check` allows; the rule is off then, on every process.
    """
    assert config.image_check is not None
    sums = Ranks.launched().broadcast(_sums(rule, model, checked.batches))
    if not sums[2]:
        return None
    found = ImageCheck(
        whole=sums[0] / sums[2],
        ruled=sums[1] / sums[2],
        allowed=config.image_check,
        samples=checked.samples,
        answer_tokens=round(sums[2]),
        held_out=checked.held_out,
    )
    if not found.rise <= config.image_check:
        rule.remove()
        raise _too_much(found, config, checked, _advice(rule.compute, model, region, config, checked))
    return found


def _sums(rule: VisualTokenSkipping, model: nn.Module, batches: Batches) -> tuple[float, float, float]:
    """Return the answers' cross entropy in whole layers and by the rule, in nats, and how many tokens they have."""
    total = torch.zeros(2, 2, dtype=torch.float64)
    with evaluating(model), torch.no_grad():
        for inputs in (_ready(model, batch) for batch in batches):
            total[1] += answer_tally(model, inputs)[:2].cpu()
            with rule.suspended():
                total[0] += answer_tally(model, inputs)[:2].cpu()
    return float(total[0, 0]), float(total[1, 0]), float(total[0, 1])


def _ready(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a batch on the model's device, with the places of its answers."""
    inputs = on_device(model, batch)
    return {**inputs, ANSWERS: label_positions(batch["labels"]).to(inputs["input_ids"].device)}


def _advice(compute: VisualCompute, model: nn.Module, region: Region, config: TrainSection, checked: Checked) -> str:
    """Return what to do about a rule that costs too much: the fewest further layers that help enough, if some do."""
    best = float("inf")
    few = checked.batches[:_TRIED_ON]
    for wider in _wider(compute):
        shift = measure_shift(model, wider, few) if config.image_shift else None
        with VisualTokenSkipping(model, wider, shift) as rule:
            whole, ruled, tokens = Ranks.launched().broadcast(_sums(rule, model, few))
        rise = (ruled - whole) / max(1.0, tokens)
        if rise <= (config.image_check or 0):
            also = ",".join(str(layer) for layer in wider.layers if layer not in region)
            return f"use train.image_also=ids:{also}, where it changes by {rise:+.2f}"
        best = min(best, rise)
    tried = f"no 25% or 50% of further layers that were tried help enough (at best {best:+.2f})"
    return f"{tried if best < float('inf') else 'few layers are left to add'}: use train.image_tokens=all"


def _wider(compute: VisualCompute) -> Iterator[VisualCompute]:
    """Yield rules with more layers that compute image tokens, of few layers first."""
    depth, seen = compute.num_layers, {compute.layers}
    for spec in WIDER:
        layers = tuple(sorted({*compute.layers, *resolve(spec, depth).layers}))
        if len(layers) < depth and layers not in seen:
            seen.add(layers)
            yield VisualCompute(layers=layers, num_layers=depth)


def _too_much(found: ImageCheck, config: TrainSection, checked: Checked, advice: str) -> TrainingError:
    """Return the error for a rule that costs more than is allowed."""
    layers = "layers that train" if config.image_also == "none" else "layers that train and those of train.image_also"
    return TrainingError(
        f"with image tokens in the {layers} alone the answers' loss of the start model rises from {found.whole:.2f} to"
        f" {found.ruled:.2f} nats a token, by {found.rise:.2f} ({checked.told})",
        f"a rise of at most {found.allowed:g} (train.image_check)",
        f"{advice}; --set train.image_check=null trains all the same",
    )
