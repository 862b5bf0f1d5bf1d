"""What is learned of a sample: its text in pieces, of which those with labels count in the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from striate.data.collate import Collator
from striate.data.label_mask import IGNORED
from striate.data.samples import Sample


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens that are all learned or all not; `image_tokens` of a piece that is a picture's."""

    text: str
    tokens: int
    learned: bool
    image_tokens: int = 0


def learned_pieces(collator: Collator, processor: Any, sample: Sample) -> list[Piece]:
    """Return the tokens of a sample as training sees them, in pieces.

    Raises:
        DataError: it can't be encoded, as a picture is damaged or its question too long.
    """
    [item] = collator.encode_each([sample])
    ids, labels = (item.tokens[name][0].tolist() for name in ("input_ids", "labels"))
    images = collator.image_mask(item.tokens)[0].tolist()
    kinds = [(label != IGNORED, image) for label, image in zip(labels, images, strict=True)]
    return list(_pieces(processor.tokenizer, ids, kinds))


def plain_pieces(sample: Sample) -> list[Piece]:
    """Return who speaks and what is said, in turn, without tokens: where no processor says how a turn is written.

    Answers are learned; with them the end of their turn will be.
    """
    pieces: list[Piece] = []
    for message in sample.messages:
        pieces += [Piece(f"{message.role}: ", 0, False), Piece(message.text, 0, message.role == "assistant")]
    return pieces


def _pieces(tokenizer: Any, ids: list[int], kinds: list[tuple[bool, bool]]) -> Iterator[Piece]:
    for (learned, image), group in groupby(range(len(ids)), key=kinds.__getitem__):
        places = list(group)
        text = "" if image else tokenizer.decode([ids[place] for place in places], skip_special_tokens=False)
        yield Piece(text, len(places), learned, len(places) if image else 0)
