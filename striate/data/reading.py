"""Reads training data of every kind and form as samples, each checked. No torch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

from striate.data.parsing import parse_sample
from striate.data.samples import Sample
from striate.data.sources.image_folder import ImageFolder
from striate.data.sources.records import FORMATS
from striate.data.sources.source_files import source_files
from striate.data.sources.source_options import PLAIN, SourceOptions
from striate.data.store.sample_rows import SampleRows
from striate.data.store.store_once import stored_samples
from striate.data.store.stored_samples import StoredSamples
from striate.errors import DataError

Item = TypeVar("Item")
_MOST_LOOKED_AT = 1000


def iter_samples(path: Path, options: SourceOptions = PLAIN) -> Iterator[Sample]:
    """Yield the samples of `path` in file order, one in memory at a time where the file's kind allows it.

    Args:
        path: a file, a folder with training data, or a data set of the hub as `hf:owner/name`.
        options: how records are read.

    Raises:
        DataError: a missing or damaged file, or a bad sample; names the file and the sample or line.
    """
    source = source_files(Path(path))
    folder = ImageFolder(source.folder, options.images)
    for file in source.files:
        for where, number, value in source.read(file):
            yield parse_sample(value, f"{file}: {where}", f"{file.stem}-{number}", folder, options)


def read_samples(path: Path, limit: int | None = None, options: SourceOptions = PLAIN) -> Sequence[Sample]:
    """Return the samples of `path` in file order, the first `limit` of them if that is given.

    Those of a large source are checked and stored once, and stay on the disk: see `data.store`.

    Args:
        path: as `iter_samples`.
        limit: how many samples to read; None reads all.
        options: how records are read.

    Raises:
        DataError: as `iter_samples`, or there are no samples.
    """
    samples: Sequence[Sample] = (_stored(path, options) if limit is None else None) or list(
        islice(iter_samples(path, options), limit)
    )
    if not samples:
        raise DataError(f"{_named(path)} holds no samples", FORMATS, "add samples, or leave it out")
    return samples


def _stored(path: Path, options: SourceOptions) -> StoredSamples | None:
    try:
        return stored_samples(source_files(Path(path)), options, lambda: iter_samples(path, options))
    except OSError:  # Reading it says what is wrong, by name.
        return None


def columns_apply(path: Path, options: SourceOptions) -> bool:
    """Return whether one of the first records of `path` has a column of `data.columns`; true where that names none.

    Raises:
        DataError: as `iter_samples`.
    """
    source, columns = source_files(Path(path)), set(options.columns.values())
    records = (record.value for file in source.files for record in source.read(file))
    first = islice(records, _MOST_LOOKED_AT)
    return not columns or any(isinstance(value, dict) and not columns.isdisjoint(value) for value in first)


def joined(parts: Sequence[Sequence[Sample]], rows: Sequence[int] | None = None) -> Sequence[Sample]:
    """Return the samples of all parts, or the `rows` of them; in memory unless one of the parts is on the disk."""
    rows = range(sum(map(len, parts))) if rows is None else rows
    if any(isinstance(part, StoredSamples) for part in parts):
        return SampleRows(parts, rows)
    together = [sample for part in parts for sample in part]
    return together if isinstance(rows, range) and len(rows) == len(together) else [together[row] for row in rows]


def read_many(
    paths: Sequence[Path], limit: int | None = None, seed: int = 0, options: SourceOptions = PLAIN
) -> Sequence[Sample]:
    """Return the samples of all `paths`, or a random `limit` of them, drawn with `seed` and kept in order.

    Raises:
        DataError: as `read_samples`, for any of the files.
    """
    parts = [read_samples(path, options=options) for path in paths]
    return joined(parts, drawn(range(sum(map(len, parts))), limit, seed))


def drawn(samples: Sequence[Item], limit: int | None, seed: int) -> Sequence[Item]:
    """Return the samples, or a random `limit` of them, drawn with `seed` and kept in order."""
    if limit is None or limit >= len(samples):
        return samples
    chosen = random.Random(seed).sample(range(len(samples)), limit)
    return [samples[index] for index in sorted(chosen)]


def _named(path: Path) -> str:
    files = source_files(path).files
    return str(files[0] if len(files) == 1 else path)
