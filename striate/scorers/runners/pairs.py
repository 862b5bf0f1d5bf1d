"""Activation patching: draw pairs of pictures and swap image tokens between them, layer by layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from striate.data.collate import Collator
from striate.data.picture_pairs import ATTRIBUTES
from striate.errors import DataError
from striate.models.interventions.layer_replay import LayerReplay, Recording
from striate.models.io.placing import on_device
from striate.models.structure.anatomy import Anatomy
from striate.progress import Advance
from striate.scorers.base import LayerScorer
from striate.scorers.runners.altered import check_image_tokens
from striate.scorers.runners.drawn_pairs import PairCollator, drawn_pairs
from striate.scorers.runners.runner import Calibration, Runner
from striate.scorers.statistics.measurement import Measurement
from striate.scorers.statistics.sums import PartSums
from striate.scorers.streaming.answers import Answers, answer_losses
from striate.scorers.streaming.batches import Batches

Floats = NDArray[np.float64]
_MAX_LENGTH = 1 << 20


@dataclass(frozen=True)
class Preferences:
    """How much a model prefers the first picture's answer to the second's, `log p(a) - log p(b)` in nats, P pairs.

    Attributes:
        first: with picture A, shape (P,).
        second: with picture B, shape (P,).
        at: with picture A whose image tokens are those of B when layer l reads them, shape (P, L).
        onward: with picture A whose image tokens are those of B from the input of layer l on, shape (P, L).
    """

    first: Floats
    second: Floats
    at: Floats
    onward: Floats

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which pairs the model tells apart: it prefers each picture's own answer, shape (P,)."""
        return (self.first > 0) & (self.second < 0)

    def shares(self, moved_PL: Floats) -> PartSums:
        """Return the sums behind `sum(moved_PL) / sum(d_A - d_B)` over the known pairs, see `token_swap`."""
        turn_P = np.where(self.known, self.first - self.second, 0.0)
        # On average 1, so that counts are pairs.
        unit = turn_P.sum() / max(1, self.known.sum()) or 1.0
        return PartSums(np.where(self.known[:, None], moved_PL, 0.0) / unit, turn_P / unit)


@dataclass(frozen=True)
class PairScorer(LayerScorer):
    """A scorer `(preferences) -> sums` of pairs of pictures, by pair and layer.

    Attributes:
        onward: whether it reads `Preferences.onward`, which takes passes of its own.
    """

    onward: bool = False


def run_pairs(
    core: Any,
    processor: Any,
    anatomy: Anatomy,
    scorers: Sequence[LayerScorer],
    advance: Advance,
    *,
    count: int,
    seed: int,
    batch_size: int = 8,
) -> dict[str, dict[str, PartSums]]:
    """Return the sums of each scorer whose source is `picture pairs`, by name and attribute, one row a pair.

    Attributes of which the model tells no pair apart are left out. The vision encoder sees each picture once; for layer
    l only the layers from l on run again, as in `run_altered`, twice for scorers that read `Preferences.onward`.
    Memory: two recordings of 2 x `batch_size` sequences.

    Args:
        core: an LVLM in eval mode, without wrappers.
        processor: its processor.
        anatomy: its parts.
        scorers: those to run.
        advance: called with the number of pairs done: `count` times the number of attributes in all.
        count: pairs of each attribute (`picture_pairs.ATTRIBUTES`).
        seed: of the pictures.
        batch_size: pairs in one batch; each takes four sequences.

    Raises:
        ModelError: pictures enter elsewhere than as image tokens, or layers can't be run one by one.
        DataError: the model tells no pair of any attribute apart.
    """
    check_image_tokens(anatomy)
    onward = any(isinstance(scorer, PairScorer) and scorer.onward for scorer in scorers)
    with drawn_pairs(ATTRIBUTES, count, seed) as drawn, torch.no_grad(), LayerReplay(core, anatomy) as replay:
        collate = PairCollator(Collator(processor, _MAX_LENGTH, train=True))
        batches = Batches(drawn, collate, batch_size)
        preferences = batches.each(lambda batch: _swap(replay, core, anatomy, batch, onward), advance)
    every = Preferences(*(np.concatenate(column) for column in zip(*preferences, strict=True)))
    by_attribute = {
        name: _rows(every, slice(place * count, (place + 1) * count)) for place, name in enumerate(ATTRIBUTES)
    }
    told_apart = {name: pairs for name, pairs in by_attribute.items() if pairs.known.any()}
    if not told_apart:
        raise DataError(
            f"the model tells none of {len(drawn)} drawn pairs of pictures apart ({', '.join(ATTRIBUTES)})",
            "a model that answers simple questions about drawn shapes and words",
            "use another scorer, or a model that is aligned with its vision encoder",
        )
    return {scorer.name: {name: scorer.function(pairs) for name, pairs in told_apart.items()} for scorer in scorers}


def _measure(calibration: Calibration, scorers: Sequence[LayerScorer], advance: Advance) -> list[Measurement]:
    sums = run_pairs(
        calibration.core,
        calibration.processor,
        calibration.anatomy,
        scorers,
        advance,
        count=calibration.pairs,
        seed=calibration.seed,
        batch_size=calibration.batches.size,
    )
    return [Measurement(scorer, sums[scorer.name], by_sample=False) for scorer in scorers]


PICTURE_PAIRS = Runner(
    ("picture pairs",),
    _measure,
    "analyze: picture pairs",
    total=lambda calibration: calibration.pairs * len(ATTRIBUTES),
    by_sample=False,
)


def _swap(
    replay: LayerReplay,
    core: Any,
    anatomy: Anatomy,
    batch: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    onward: bool,
) -> tuple[Floats, Floats, Floats, Floats]:
    first, second = (on_device(core, half) for half in batch)
    answers = Answers.of(batch[0]["labels"]).to(first["input_ids"].device)
    theirs = replay.record(second, answers.rows, answers.columns)
    ours = replay.record(first, answers.rows, answers.columns)
    image_BT1 = anatomy.image_mask(first["input_ids"])[..., None]
    at: list[Tensor] = []
    on: list[Tensor] = []
    for layer, (call, other) in enumerate(zip(ours.calls, theirs.calls, strict=True)):
        swapped_BTD = replay.layer_output(ours, layer, torch.where(image_BT1, other.x_in, call.x_in))
        alone_BTD = torch.where(image_BT1, call.x_out, swapped_BTD)
        at.append(_preference(replay.patched(ours, layer, alone_BTD), answers))
        if onward:
            on.append(_preference(replay.patched(ours, layer, swapped_BTD), answers))
    at_PL = torch.stack(at, dim=1)
    columns = (_plain(ours, answers), _plain(theirs, answers), at_PL, torch.stack(on, dim=1) if onward else at_PL)
    return tuple(column.double().cpu().numpy() for column in columns)  # type: ignore[return-value]


def _plain(recording: Recording, answers: Answers) -> Tensor:
    return _preference(recording.logits, answers)


def _preference(logits_NV: Tensor, answers: Answers) -> Tensor:
    """Return `log p(a) - log p(b)` of each pair, whose two answers are neighbouring rows, shape (P,)."""
    total_B = -answers.per_sample(answer_losses(logits_NV, answers.targets))
    return total_B[0::2] - total_B[1::2]


def _rows(pairs: Preferences, rows: slice) -> Preferences:
    return Preferences(pairs.first[rows], pairs.second[rows], pairs.at[rows], pairs.onward[rows])
