"""Analyze: score every decoder layer on calibration data."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from striate.artifacts import Scores
from striate.data.collate import Collator
from striate.data.samples import Sample
from striate.errors import ConfigError, DataError, SpecError
from striate.models.anatomy import Anatomy, check_decoder_only, decoder_layers, find_anatomy, unwrap
from striate.progress import Progress, Silent
from striate.scorers import SCORERS
from striate.scorers.stream import LayerStream, TokenMasks
from striate.scorers.summary import summarise
from striate.scorers.sums import PartSums


def analyze(
    model: nn.Module,
    processor: Any,
    samples: Sequence[Sample],
    scorers: Sequence[str] = ("block-influence",),
    *,
    batch_size: int = 8,
    max_length: int = 2048,
    seed: int = 0,
    progress: Progress | None = None,
) -> Scores:
    """Return the importance of every decoder layer on `samples`, one entry a scorer, higher = keep.

    All scorers share one forward pass over the whole conversations, answers included. Neither padding nor batch size
    nor the order of the samples changes a score. The model is left as it was: no hook, same training mode.

    Args:
        model: an LVLM, PEFT-wrapped or not.
        processor: its processor.
        samples: the calibration set; samples without a picture add text tokens only.
        scorers: names that `striate ls scorers` lists.
        batch_size: samples in one forward pass.
        max_length: longer conversations lose text at their end.
        seed: for the bootstrap intervals only.
        progress: where to say how far it is; silent by default.

    Raises:
        SpecError: unknown scorer, or none.
        DataError: no samples, or none with tokens that a scorer needs.
        ModelError: not an LVLM, an encoder-decoder, or one whose layers can't be scored by input and output.
    """
    chosen = [SCORERS.get(name) for name in dict.fromkeys(scorers)]
    if not chosen:
        raise SpecError("no scorer was named", ", ".join(SCORERS.names()), "name at least one in analyze.scorers")
    if not samples:
        raise DataError("the calibration set is empty", "one sample or more", "check data.calibration or data.train")
    if batch_size < 1:
        raise ConfigError(f"a batch of {batch_size} samples can't run", "1 or more", "set the batch size to 1 or more")
    order = _longest_first(samples)
    core, anatomy = unwrap(model), find_anatomy(model)
    check_decoder_only(anatomy)
    collate = Collator(processor, max_length, train=True)
    bar = (progress or Silent()).track("analyze", len(samples))
    with _evaluating(core), LayerStream(decoder_layers(core), chosen) as stream, torch.no_grad(), bar as advance:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            inputs = _inputs(collate([samples[index] for index in rows]), core)
            with stream.batch(_masks(inputs, anatomy)):
                core(**inputs)
            advance(len(rows))
    by_id = sorted(range(len(order)), key=lambda row: (samples[order[row]].id, order[row]))
    results = {scorer.name: _reordered(stream.results(scorer.name), by_id) for scorer in chosen}
    return Scores(
        num_layers=anatomy.num_layers,
        samples=len(samples),
        scorers=tuple(summarise(name, parts, seed) for name, parts in results.items()),
    )


def _longest_first(samples: Sequence[Sample]) -> list[int]:
    """Return an order with little padding, in which a lack of memory shows at once."""
    return sorted(
        range(len(samples)),
        key=lambda index: (len(samples[index].images), sum(len(turn.text) for turn in samples[index].messages)),
        reverse=True,
    )


def _reordered(parts: dict[str, PartSums], rows: list[int]) -> dict[str, PartSums]:
    """Return `parts` with their samples in the order of `rows`, so that intervals don't depend on the input's order."""
    index = np.asarray(rows)
    return {part: PartSums(sums.sums[index], sums.counts[index]) for part, sums in parts.items()}


def _masks(inputs: dict[str, Any], anatomy: Anatomy) -> TokenMasks:
    """Return which positions of `inputs` are attended, and which of those are image tokens."""
    ids_BT, attended_BT = inputs["input_ids"], inputs["attention_mask"].bool()
    image_ids = torch.tensor(anatomy.image_token_ids, dtype=ids_BT.dtype, device=ids_BT.device)
    return TokenMasks(attended_BT, torch.isin(ids_BT, image_ids) & attended_BT)


def _inputs(batch: dict[str, Tensor], core: Any) -> dict[str, Any]:
    """Return what the forward pass takes: no labels, on the model's device, logits of one position only."""
    device = core.get_input_embeddings().weight.device
    inputs: dict[str, Any] = {}
    for name, value in batch.items():
        if name != "labels":
            inputs[name] = value.to(device, core.dtype) if value.is_floating_point() else value.to(device)
    parameters = inspect.signature(core.forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if "use_cache" in parameters or takes_any:
        inputs["use_cache"] = False
    if "logits_to_keep" in parameters:
        inputs["logits_to_keep"] = 1
    return inputs


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, and each back in its own mode afterwards, whatever happens."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
