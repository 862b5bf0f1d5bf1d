"""Rows of Parquet files, streamed, with the optional package pyarrow."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from striate.data.rows import Row
from striate.errors import DataError
from striate.tasks.benchmarks.formats.release import Release

ROWS_AT_ONCE = 16


def parquet_rows(release: Release, file: Path, columns: Sequence[str]) -> Iterator[Row]:
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
    number = -1
    try:
        with ParquetFile(file) as table:
            known = [name for name in columns if name in table.schema_arrow.names]
            for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, columns=known):
                for cells in batch.to_pylist():
                    number += 1
                    yield release.row(cells, f"{file}, row {number}")
    except (OSError, ValueError, ArrowException) as error:
        raise release.damaged(file, f"is no Parquet file: {error}") from error
