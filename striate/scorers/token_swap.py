"""Image-token swap: which layer reads the attribute in which two pictures differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from striate.data.collate import Collator
from striate.data.picture_pairs import ATTRIBUTES, picture_pair
from striate.data.samples import Message, Sample
from striate.errors import DataError, ModelError
from striate.models.anatomy import Anatomy
from striate.models.answer_logits import on_device
from striate.models.replay import Recording, Replay
from striate.progress import Advance
from striate.scorers.altered import check_image_tokens, image_mask
from striate.scorers.answers import Answers, answer_losses
from striate.scorers.batches import Batches
from striate.scorers.kinds import LayerScorer
from striate.scorers.sums import PartSums

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


def token_swap(pairs: Preferences) -> PartSums:
    """Return what share of the turn from A's answer to B's comes from swapping image tokens at one layer alone.

    The score of layer l is `sum(d_A - d_l) / sum(d_A - d_B)` over the pairs that the model tells apart; d is
    `log p(a) - log p(b)` of the two answers, d_A with picture A, d_B with picture B, d_l with A when the text tokens of
    layer l read keys and values of B's image tokens (their states as B alone makes them) and all other layers read A's.
    0: the layer reads nothing of the attribute; 1: as if B was shown. Paper: Vision Function Layers, arXiv 2509.24791,
    swaps at one layer too, in the cache of keys and values, and counts changed answers; here the question's tokens read
    the swapped states as well, since they may carry what the answer says.
    """
    turn_P = np.where(pairs.known, pairs.first - pairs.second, 0.0)
    # On average 1, so that counts are pairs.
    unit = turn_P.sum() / max(1, pairs.known.sum()) or 1.0
    moved_PL = np.where(pairs.known[:, None], pairs.first[:, None] - pairs.at, 0.0)
    return PartSums(moved_PL / unit, turn_P / unit)


def token_swap_flips(pairs: Preferences) -> PartSums:
    """Return how often the answer turns from A's to B's when image tokens are swapped at one layer alone.

    The share of the pairs that the model tells apart for which it prefers B's answer after the swap of `token_swap`.
    """
    flips_PL = pairs.known[:, None] & (pairs.at < 0)
    return PartSums(flips_PL.astype(np.float64), pairs.known.astype(np.float64))


def token_swap_onward(pairs: Preferences) -> PartSums:
    """Return what share of the turn is lost when the swap begins one layer later: what layer l is the last to read.

    With e_l the share of the turn (see `token_swap`) when image tokens are B's from the input of layer l on, the score
    of layer l is `e_l - e_(l+1)`; e behind the last layer is 0, and the scores of all layers add up to e_0, which is 1
    where pictures enter as image tokens alone. Unlike a swap at one layer it also finds what several layers read.
    """
    turn_P = np.where(pairs.known, pairs.first - pairs.second, 0.0)
    unit = turn_P.sum() / max(1, pairs.known.sum()) or 1.0
    later_PL = np.concatenate([pairs.onward[:, 1:], pairs.first[:, None]], axis=1)
    return PartSums(np.where(pairs.known[:, None], later_PL - pairs.onward, 0.0) / unit, turn_P / unit)


_PAPER = "https://arxiv.org/abs/2509.24791"

TOKEN_SWAP = LayerScorer(
    name="token-swap",
    title="Image-token swap",
    summary="how far the answer turns to another picture's when one layer reads that picture's image tokens",
    function=token_swap,
    paper=_PAPER,
    source="picture pairs",
    limits="drawn pictures only; what several layers read alike shows at none of them; needs pairs that it tells apart",
)

TOKEN_SWAP_FLIPS = LayerScorer(
    name="token-swap-flips",
    title="Image-token swap (answers changed)",
    summary="how often the answer becomes another picture's when one layer reads that picture's image tokens",
    function=token_swap_flips,
    paper=_PAPER,
    source="picture pairs",
    limits="coarse: it moves only where the preferred answer changes; drawn pictures only",
)

TOKEN_SWAP_ONWARD = LayerScorer(
    name="token-swap-onward",
    title="Image-token swap, from a layer on",
    summary="what the layer is the last to read: the fall of the answer's turn when the swap begins one layer later",
    function=token_swap_onward,
    paper=_PAPER,
    source="picture pairs",
    limits="the last of several readers takes all the credit; drawn pictures only",
)


def run_pairs(
    core: Any,
    processor: Any,
    anatomy: Anatomy,
    scorers: Sequence[LayerScorer],
    count: int,
    seed: int,
    advance: Advance,
    batch_size: int = 8,
) -> dict[str, dict[str, PartSums]]:
    """Return the sums of each scorer whose source is `picture pairs`, by name and attribute, one row a pair.

    Attributes of which the model tells no pair apart are left out. The vision encoder sees each picture once; for layer
    l only the layers from l on run again, as in `run_altered`, twice where `token-swap-onward` is asked for as well.
    Memory: two recordings of 2 x `batch_size` sequences.

    Args:
        core: an LVLM in eval mode, without wrappers.
        processor: its processor.
        anatomy: its parts.
        scorers: those to run.
        count: pairs of each attribute (`picture_pairs.ATTRIBUTES`).
        seed: of the pictures.
        advance: hears of pairs that are done: `count` times the number of attributes in all.
        batch_size: pairs in one batch; each takes four sequences.

    Raises:
        ModelError: pictures enter elsewhere than as image tokens, or layers can't be run one by one.
        DataError: the model tells no pair of any attribute apart.
    """
    check_image_tokens(anatomy)
    onward = any(scorer.name == TOKEN_SWAP_ONWARD.name for scorer in scorers)
    with _drawn(count, seed) as pairs, torch.no_grad(), Replay(core, anatomy) as replay:
        collate = _PairCollator(Collator(processor, _MAX_LENGTH, train=True))
        batches = Batches(pairs, collate, batch_size)
        found = batches.each(lambda batch: _swap(replay, core, anatomy, batch, onward), advance)
    every = Preferences(*(np.concatenate(column) for column in zip(*found, strict=True)))
    by_attribute = {
        name: _rows(every, slice(place * count, (place + 1) * count)) for place, name in enumerate(ATTRIBUTES)
    }
    known = {name: one for name, one in by_attribute.items() if one.known.any()}
    if not known:
        raise DataError(
            f"the model tells none of {len(pairs)} drawn pairs of pictures apart ({', '.join(ATTRIBUTES)})",
            "a model that answers simple questions about drawn shapes and words",
            "use another scorer, or a model that is aligned with its vision encoder",
        )
    return {scorer.name: {name: scorer.function(one) for name, one in known.items()} for scorer in scorers}


@dataclass(frozen=True)
class _Pair:
    """Two pictures on disk, as samples: each picture with either answer."""

    id: str
    first: tuple[Sample, Sample]
    second: tuple[Sample, Sample]


@dataclass(frozen=True)
class _PairCollator:
    """Makes two batches of pairs that hold the same tokens: the first pictures, and the second ones."""

    collate: Collator

    def __call__(self, pairs: Sequence[_Pair]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return both batches; rows are (pair, answer)."""
        first = self.collate([sample for pair in pairs for sample in pair.first])
        second = self.collate([sample for pair in pairs for sample in pair.second])
        if not torch.equal(first["input_ids"], second["input_ids"]):
            raise ModelError(
                "the processor makes other tokens of two pictures of one size",
                "a processor whose image tokens depend on a picture's size alone",
                "leave the token-swap scorers out",
            )
        return first, second


@contextmanager
def _drawn(count: int, seed: int) -> Iterator[list[_Pair]]:
    """Yield `count` pairs of each attribute, in the order of `ATTRIBUTES`, with their pictures in a folder for now."""
    with TemporaryDirectory(prefix="striate-pairs-") as folder:
        numbers = [(name, seed * count + number) for name in ATTRIBUTES for number in range(count)]
        yield [_written(Path(folder), name, number) for name, number in numbers]


def _written(folder: Path, attribute: str, number: int) -> _Pair:
    """Return one pair whose pictures now lie in `folder`."""
    pair, name = picture_pair(attribute, number), f"{attribute}-{number}"
    files = folder / f"{name}-a.png", folder / f"{name}-b.png"
    for file, picture in zip(files, pair.pictures, strict=True):
        picture.save(file, compress_level=1)
    question = Message("user", f"<image>\n{pair.question}")
    both = [
        tuple(Sample(name, (question, Message("assistant", answer)), (file,), attribute) for answer in pair.answers)
        for file in files
    ]
    return _Pair(name, (both[0][0], both[0][1]), (both[1][0], both[1][1]))


def _swap(
    replay: Replay, core: Any, anatomy: Anatomy, batch: tuple[Mapping[str, Tensor], Mapping[str, Tensor]], onward: bool
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return the fields of `Preferences` for one batch of pairs."""
    first, second = (on_device(core, one) for one in batch)
    answers = Answers.of(batch[0]["labels"]).to(first["input_ids"].device)
    theirs = replay.record(second, answers.rows, answers.columns)
    ours = replay.record(first, answers.rows, answers.columns)
    image_BT1 = image_mask(first, anatomy)[..., None]
    at: list[Tensor] = []
    on: list[Tensor] = []
    for layer, (call, other) in enumerate(zip(ours.calls, theirs.calls, strict=True)):
        swapped_BTD = replay.step(ours, layer, torch.where(image_BT1, other.x_in, call.x_in))
        alone_BTD = torch.where(image_BT1, call.x_out, swapped_BTD)
        at.append(_preference(replay.behind(ours, layer, alone_BTD), answers))
        if onward:
            on.append(_preference(replay.behind(ours, layer, swapped_BTD), answers))
    at_PL = torch.stack(at, dim=1)
    columns = (_plain(ours, answers), _plain(theirs, answers), at_PL, torch.stack(on, dim=1) if onward else at_PL)
    return tuple(column.double().cpu().numpy() for column in columns)  # type: ignore[return-value]


def _plain(recording: Recording, answers: Answers) -> Tensor:
    """Return the preference of the unaltered model, shape (P,)."""
    return _preference(recording.logits, answers)


def _preference(logits_NV: Tensor, answers: Answers) -> Tensor:
    """Return `log p(a) - log p(b)` of each pair, whose two answers are neighbouring rows, shape (P,)."""
    total_B = -answers.per_sample(answer_losses(logits_NV, answers.targets))
    return total_B[0::2] - total_B[1::2]


def _rows(pairs: Preferences, rows: slice) -> Preferences:
    """Return some of the pairs."""
    return Preferences(pairs.first[rows], pairs.second[rows], pairs.at[rows], pairs.onward[rows])
