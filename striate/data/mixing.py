"""How often an epoch shows the samples of each source, and what a training really saw of them (`data.mix`)."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from striate.artifacts import SourceSeen
from striate.config import DataSection, share_of
from striate.errors import DataError
from striate.printable import shown


@dataclass(frozen=True)
class SampleSources:
    """Where the samples of a training set come from.

    Attributes:
        names: the places, as the config names them.
        sizes: how many samples were read of each.
        available: how many of those may be trained on; the others are held out, or over `data.max_train_samples`.
        rows: of each sample of the training set, its number among all that were read; repeated samples share one.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    available: tuple[int, ...]
    rows: Sequence[int]

    def name_of(self, index: int, sample_id: str) -> str:
        """Return what tells a sample of the training set from those of its id in other sources."""
        source = source_of(self.sizes)(self.rows[index])
        return sample_id if len(self.names) == 1 else f"{self.names[source]}: {sample_id}"

    def seen(self, times: Sequence[int]) -> tuple[SourceSeen, ...]:
        """Return what was seen of each source, where `times` says how often each sample was learned from."""
        different: list[set[int]] = [set() for _ in self.names]
        learned = [0] * len(self.names)
        source = source_of(self.sizes)
        for row, count in zip(self.rows, times, strict=True):
            if count:
                different[source(row)].add(row)
                learned[source(row)] += count
        parts = zip(self.names, self.available, different, learned, strict=True)
        return tuple(
            SourceSeen(name=name, samples=samples, seen=len(rows), epochs=count / max(1, samples))
            for name, samples, rows, count in parts
        )


def source_of(sizes: Sequence[int]) -> Callable[[int], int]:
    """Return a function that says from which source, of those of `sizes`, a numbered sample comes."""
    ends = list(accumulate(sizes))
    return lambda row: bisect_right(ends, row)


def mixed(
    rows: Sequence[int], section: DataSection, sizes: Sequence[int], pictured: Callable[[int], bool], seed: int
) -> Sequence[int]:
    """Return the samples of an epoch by their numbers, in order: each as often as `data.mix` and `data.text` say.

    A source at 2 epochs stands twice in the mix, one at 0.25 with a quarter of its samples, drawn with `seed`; one with
    a share has as many samples as make that share of all. Then samples without pictures are drawn or repeated until
    they are the share `data.text` of the mix.

    Args:
        rows: the numbers of those that may be trained on.
        section: the settings.
        sizes: how many samples each source has, before any was held out.
        pictured: whether the sample of a number has pictures.
        seed: of what is drawn.

    Raises:
        DataError: there are no samples of a kind of which some are wanted.
    """
    chance = random.Random(seed)
    if section.mix:
        source = source_of(sizes)
        groups: list[list[int]] = [[] for _ in sizes]
        for row in rows:
            groups[source(row)].append(row)
        counts = _counts([len(group) for group in groups], section)
        rows = sorted(
            row for group, count in zip(groups, counts, strict=True) for row in _repeated(group, count, chance)
        )
    if section.text is None:
        return rows
    share = share_of(section.text)
    with_pictures, texts = [row for row in rows if pictured(row)], [row for row in rows if not pictured(row)]
    if not with_pictures or not texts:
        raise DataError(
            f"data.text asks for {section.text} of samples without pictures, and of {len(rows)} samples"
            f" {len(texts)} have none",
            "samples with pictures, and some without",
            "add samples of the other kind to data.train, or leave data.text out",
        )
    wanted = max(1, int(share / (1 - share) * len(with_pictures) + 0.5))
    return sorted([*with_pictures, *_repeated(texts, wanted, chance)])


def _counts(available: Sequence[int], section: DataSection) -> list[int]:
    """Return how many samples of each source an epoch has."""
    settings = [section.mix.get(name, 1.0) for name in section.train]
    empty = next((name for name, count in zip(section.train, available, strict=True) if not count), None)
    if empty is not None:
        raise DataError(
            f"no sample of {shown(empty)} is left to train on, and data.mix is set",
            "sources with samples that are not held out",
            "leave the source out, or hold out less",
        )
    shares = [share_of(setting) if isinstance(setting, str) else 0.0 for setting in settings]
    counts = [
        0 if isinstance(one, str) else max(1, int(one * n + 0.5)) for one, n in zip(settings, available, strict=True)
    ]
    whole = sum(counts) / (1 - sum(shares)) if any(counts) else float(sum(available))
    return [max(1, int(share * whole + 0.5)) if share else count for share, count in zip(shares, counts, strict=True)]


def _repeated(rows: Sequence[int], count: int, chance: random.Random) -> list[int]:
    """Return `count` of the rows: all as often as they go into it, and some once more, drawn."""
    times, rest = divmod(count, len(rows))
    return [*list(rows) * times, *chance.sample(rows, rest)]
