"""Draws the samples that heal: a share of the training data, with as many samples without a picture as is asked."""

from __future__ import annotations

import random
from collections.abc import Sequence

from striate.config import HealSection
from striate.data.samples import Sample


def healing_samples(
    pool: Sequence[Sample], section: HealSection, batch_size: int, seed: int, text_pool: Sequence[Sample] = ()
) -> list[Sample]:
    """Return the samples that heal, drawn with `seed`, in the order of the data: pictured ones, then text.

    A `section.text` share of them has no picture, as far as there are such: pictured ones fill up. Each is drawn once.

    Args:
        pool: the training data.
        section: how much of it, and how much text.
        batch_size: samples of a step.
        seed: of what is drawn.
        text_pool: more samples, of which those without a picture are taken.
    """
    pictured = [sample for sample in pool if sample.images]
    text = list(dict.fromkeys(sample for sample in (*pool, *text_pool) if not sample.images))
    wanted = count_of(len(pool), section, batch_size)
    # With no picture anywhere there is nothing that text would be mixed into.
    share = section.text if pictured else 1.0
    text_count = min(len(text), int(share * wanted + 0.5))
    pictured_count = min(len(pictured), wanted - text_count)
    # Only where pictured ones run short: of few samples rounding may leave none that is pictured.
    if share < 1 and pictured_count < wanted - text_count:
        text_count = min(text_count, int(share / (1 - share) * pictured_count + 0.5))
    chance = random.Random(seed)
    return [*_drawn(pictured, pictured_count, chance), *_drawn(text, text_count, chance)]


def count_of(available: int, section: HealSection, batch_size: int) -> int:
    """Return how many samples are to be drawn of a training set of `available` samples."""
    if section.share is not None:
        return max(1, int(section.share * available + 0.5))
    return (section.steps or 0) * batch_size


def _drawn(samples: Sequence[Sample], count: int, chance: random.Random) -> list[Sample]:
    """Return `count` of the samples, drawn, in their order."""
    return [samples[index] for index in sorted(chance.sample(range(len(samples)), count))]
