"""Layer ablation: skip one decoder layer and score the answer (knock-out, ShortV's layer contribution)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from striate.errors import ModelError
from striate.models.interventions.layer_replay import LayerReplay, Recording
from striate.models.io.placing import on_device
from striate.models.structure.anatomy import Anatomy
from striate.progress import Advance
from striate.scorers.base import LayerScorer
from striate.scorers.runners.runner import Calibration, Runner
from striate.scorers.statistics.measurement import Measurement
from striate.scorers.statistics.sums import PartSums
from striate.scorers.streaming.answers import Answers
from striate.scorers.streaming.batches import Batches

Skips = Literal["answer", "image", "text"]


@dataclass(frozen=True)
class AlteredScorer(LayerScorer):
    """A scorer `(plain_NV, altered_NV, targets_N) -> values_N` of the logits where N answer tokens are predicted.

    Attributes:
        skips: which tokens leave the altered layer as they came: `image` or `text` tokens, or all (`answer`). It is
            also the name of the scorer's one part; the part's tokens are the answer tokens of the samples that have
            any tokens to skip.
    """

    skips: Skips = "answer"


@dataclass(frozen=True)
class _Scored:
    """One batch: sums over the answer tokens of each sample, shape (B, L), and how many those are, shape (B,)."""

    sums: Tensor
    counts: Tensor


def run_altered(
    core: Any,
    anatomy: Anatomy,
    batches: Batches[Any, dict[str, Tensor]],
    scorers: Sequence[LayerScorer],
    advance: Advance,
) -> dict[str, dict[str, PartSums]]:
    """Return the sums of each scorer whose source is `altered layers`, by name and part, samples in their order.

    One plain forward pass a batch keeps what enters every layer. For layer i only the layers behind it run again, which
    makes (L - 1) / 2 passes of the decoder for L layers and each way of skipping; the vision encoder runs once. The
    first batch proves it: run again unaltered, it must give the plain logits. Layers that share more than hidden
    states (keys and values of an earlier one) take whole passes instead.

    Memory beyond a forward pass: (L + 1) x B x T x D hidden states in the model's dtype and the vision encoder's
    output. Only the answers' positions reach the LM head.

    Args:
        core: an LVLM in eval mode, without wrappers.
        anatomy: its parts.
        batches: training batches, answers labelled.
        scorers: those to run; scorers that skip the same tokens share their passes.
        advance: called with the number of samples done.

    Raises:
        ModelError: layers that can't be run one by one, or pictures that enter elsewhere than as image tokens.
    """
    chosen = [scorer for scorer in scorers if isinstance(scorer, AlteredScorer)]
    if any(scorer.skips == "image" for scorer in chosen):
        check_image_tokens(anatomy)
    with torch.no_grad(), LayerReplay(core, anatomy) as replay:
        scored = batches.each(lambda batch: _score(replay, core, anatomy, batch, chosen), advance)
    return {scorer.name: {scorer.skips: _joined([batch[scorer.name] for batch in scored])} for scorer in chosen}


def _measure(calibration: Calibration, scorers: Sequence[LayerScorer], advance: Advance) -> list[Measurement]:
    sums = run_altered(calibration.core, calibration.anatomy, calibration.batches, scorers, advance)
    return [Measurement(scorer, sums[scorer.name]) for scorer in scorers]


ALTERED_LAYERS = Runner(("altered layers",), _measure, "analyze: altered layers")


def check_image_tokens(anatomy: Anatomy) -> None:
    """Return if pictures enter the decoder as image tokens of the sequence.

    Raises:
        ModelError: they enter by cross-attention, or the model names no image token.
    """
    if not anatomy.image_token_ids or anatomy.cross_attends:
        raise ModelError(
            f"{anatomy.model_type} has no image tokens in its sequence: its decoder attends to the picture itself",
            "an LVLM whose pictures become tokens between those of the text",
            "choose scorers that need no image tokens, such as knock-out",
        )


def _score(
    replay: LayerReplay, core: Any, anatomy: Anatomy, batch: Mapping[str, Tensor], scorers: Sequence[AlteredScorer]
) -> dict[str, _Scored]:
    inputs = on_device(core, batch)
    answers = Answers.of(batch["labels"]).to(inputs["input_ids"].device)
    recording = replay.record(inputs, answers.rows, answers.columns)
    image_BT = anatomy.image_mask(inputs["input_ids"])
    skipped = {"image": image_BT, "text": ~image_BT, "answer": torch.ones_like(image_BT)}
    scored: dict[str, _Scored] = {}
    for skips in dict.fromkeys(scorer.skips for scorer in scorers):
        alike = [scorer for scorer in scorers if scorer.skips == skips]
        mask_BT = skipped[skips]
        sums = _sums(replay, recording, answers, mask_BT, alike)
        counts_B = (answers.counts * mask_BT.any(1)).cpu()
        scored |= {name: _Scored(sums_BL.cpu(), counts_B) for name, sums_BL in sums.items()}
    return scored


def _sums(
    replay: LayerReplay, recording: Recording, answers: Answers, mask_BT: Tensor, scorers: Sequence[AlteredScorer]
) -> dict[str, Tensor]:
    """Return the sums (B, L) of scorers for which the tokens of `mask_BT` skip each layer in turn."""
    columns: dict[str, list[Tensor]] = {scorer.name: [] for scorer in scorers}
    for layer, call in enumerate(recording.calls):
        output_BTD = torch.where(mask_BT[..., None], call.x_in, call.x_out)
        altered_NV = replay.patched(recording, layer, output_BTD)
        for scorer in scorers:
            values_N = scorer.function(recording.logits, altered_NV, answers.targets)
            columns[scorer.name].append(answers.per_sample(values_N) * mask_BT.any(1))
    return {name: torch.stack(by_layer, dim=1) for name, by_layer in columns.items()}


def _joined(scored: Sequence[_Scored]) -> PartSums:
    return PartSums(
        torch.cat([batch.sums for batch in scored]).numpy().astype(np.float64),
        torch.cat([batch.counts for batch in scored]).numpy().astype(np.float64),
    )
