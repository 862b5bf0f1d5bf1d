"""Rows of Parquet files, streamed, with the optional package pyarrow."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from striate.errors import DataError
from striate.tasks.benchmarks.formats.release import Release

ROWS_AT_ONCE = 16


def parquet_rows(release: Release, file: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of `file` with those of `columns` that it has, a few in memory at a time.

    Raises:
        DataError: pyarrow is not installed, or the file is no Parquet file.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DataError(
            f"benchmark {release.name} is stored as Parquet, and the package pyarrow is not installed",
            "striate with its extra 'parquet'",
            "pip install 'striate[parquet]', or leave this benchmark out",
        ) from error
    try:
        with ParquetFile(file) as table:
            known = [name for name in columns if name in table.schema_arrow.names]
            for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, columns=known):
                yield from batch.to_pylist()
    except (OSError, ArrowException) as error:
        raise release.damaged(file, f"is no Parquet file: {error}") from error
