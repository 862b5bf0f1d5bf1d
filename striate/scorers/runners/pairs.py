"""The runner of scorers that draw pairs of pictures and swap image tokens between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from striate.data.collate import Collator
from striate.data.picture_pairs import ATTRIBUTES, picture_pair
from striate.data.samples import Message, Sample
from striate.errors import DataError, ModelError
from striate.models.interventions.layer_replay import Recording, Replay
from striate.models.io.placing import on_device
from striate.models.structure.anatomy import Anatomy
from striate.progress import Advance
from striate.scorers.base import LayerScorer
from striate.scorers.runners.altered import check_image_tokens
from striate.scorers.statistics.sums import PartSums
from striate.scorers.streaming.answers import Answers, answer_losses
from striate.scorers.streaming.batches import Batches
from striate.scorers.token_swap import TOKEN_SWAP_ONWARD, Floats, Preferences

_MAX_LENGTH = 1 << 20


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
    image_BT1 = anatomy.image_mask(first["input_ids"])[..., None]
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
