"""Samples that can't be encoded, as a picture is damaged or a text too long: refused, or left out and told of."""

from __future__ import annotations

from collections.abc import Sequence

from striate.data.collate import Collator
from striate.data.encoding import Encoded
from striate.data.samples import Sample
from striate.errors import DataError


def encode_usable(collator: Collator, samples: Sequence[Sample]) -> tuple[list[Encoded], dict[int, str]]:
    """Return the samples, encoded; where the collator skips broken ones, without these: why, by their places.

    Raises:
        DataError: a sample that can't be used, where none is skipped.
    """
    try:
        return collator.encode_each(samples), {}
    except DataError:
        if not collator.skips_broken:
            raise
    encoded: list[Encoded] = []
    broken: dict[int, str] = {}
    for place, sample in enumerate(samples):
        try:
            encoded += collator.encode_each([sample])
        except DataError as error:
            broken[place] = error.given
    return encoded, broken


def usable(collator: Collator, samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples without those that the collator skips, all of which it encodes to see; all if it skips none.

    Raises:
        DataError: no sample is left.
    """
    if not collator.skips_broken:
        return list(samples)
    reasons = [(sample, encode_usable(collator, [sample])[1]) for sample in samples]
    left = [sample for sample, broken in reasons if not broken]
    if samples and not left:
        raise DataError(
            f"none of {len(samples)} samples can be used, such as: {next(iter(reasons[0][1].values()))}",
            "samples of which data.broken=skip leaves some",
            "mend the data; `striate check` names what is wrong",
        )
    return left
