"""Records of Arrow and Parquet files; pictures in uncompressed Arrow stay where they lie. Needs pyarrow. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from striate.data.sources.records import Record
from striate.data.sources.stored_pictures import PictureBytes
from striate.errors import DataError, first_line
from striate.printable import shown

ROWS_AT_ONCE, BUFFER = 16, 2**20
_FILE_MAGIC = b"ARROW1"
_MOVING = ("Video", "Audio")


def arrow_records(file: Path) -> Iterator[Record]:
    """Yield each row of an Arrow file or stream, as `datasets` saves them; its pages are mapped, not read.

    Raises:
        DataError: pyarrow is missing, the file is damaged, or a column holds videos or sounds.
    """
    import_pyarrow(file)
    import pyarrow

    try:
        with pyarrow.memory_map(str(file)) as mapped:
            whole = mapped.read_buffer()
            start = whole.slice(0, min(whole.size, len(_FILE_MAGIC))).to_pybytes()
            opened = pyarrow.ipc.open_file if start == _FILE_MAGIC else pyarrow.ipc.open_stream
            reader = opened(pyarrow.BufferReader(whole))
            cells = _Cells(file, _features(reader.schema, file), whole.address, whole.size)
            if start == _FILE_MAGIC:
                batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
                yield from _rows(batches, cells)
            else:
                yield from _rows(reader, cells)
    except (OSError, ValueError, MemoryError, pyarrow.ArrowException) as error:
        raise _damaged(file, "Arrow", error) from error


def parquet_records(file: Path) -> Iterator[Record]:
    """Yield each row of a Parquet file, a few in memory at a time; raises as `arrow_records`."""
    import_pyarrow(file)
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        # Unasked, it reads whole groups of rows at once, and some writers make one of all.
        with ParquetFile(file, buffer_size=BUFFER, pre_buffer=False) as table:
            cells = _Cells(file, _features(table.schema_arrow, file))
            yield from _rows(table.iter_batches(batch_size=ROWS_AT_ONCE), cells)
    except (OSError, ValueError, MemoryError, pyarrow.ArrowException) as error:
        raise _damaged(file, "Parquet", error) from error


def import_pyarrow(file: Path) -> None:
    """Return if pyarrow is installed.

    Raises:
        DataError: it is not; `file` is what needs it.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"{file} is read with the package pyarrow, which is not installed",
            "striate with all that it depends on",
            "pip install pyarrow, or convert the data to JSON lines",
        ) from error


@dataclass(frozen=True)
class _Features:
    """What `datasets` notes of a file's columns: the names of classes, by column."""

    classes: Mapping[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Cells:
    """Turns columns of `file` into Python values; bytes become pictures, in place where they lie in its mapping."""

    file: Path
    features: _Features
    address: int = 0
    size: int = 0

    def of(self, array: Any, name: str, rows: Sequence[int]) -> list[Any]:
        """Return the values of an array, called `name`; `rows` are the rows of the file that they belong to."""
        import pyarrow.types as kinds

        kind = array.type
        if kinds.is_dictionary(kind):
            return self.of(array.dictionary_decode(), name, rows)
        if hasattr(kind, "storage_type"):
            return self.of(array.storage, name, rows)
        if not _has_bytes(kind):
            return list(array.to_pylist())
        if kinds.is_struct(kind):
            names = [kind.field(number).name for number in range(kind.num_fields)]
            columns = [self.of(part, name, rows) for part in array.flatten()]
            objects = [dict(zip(names, parts, strict=True)) for parts in zip(*columns, strict=True)]
            return [one if there else None for one, there in zip(objects, array.is_valid().to_pylist(), strict=True)]
        if _is_list(kind):
            pairs = zip(array, rows, strict=True)
            return [self.of(one.values, name, [row] * len(one)) if one.is_valid else None for one, row in pairs]
        if kinds.is_map(kind) or kinds.is_union(kind):
            return list(array.to_pylist())
        labels = [f"{self.file}: row {row}, {shown(name)}" for row in rows]
        if _is_view(kind):
            values = zip(array.to_pylist(), labels, strict=True)
            return [None if value is None else PictureBytes(value, label) for value, label in values]
        return self._pictures(array, labels)

    def _pictures(self, array: Any, labels: Sequence[str]) -> list[PictureBytes | None]:
        """Return the values of an array of bytes, each a view of the array's own buffer."""
        import pyarrow.types as kinds

        if len(array) == 0:
            return []
        buffer = array.buffers()[-1]
        if kinds.is_fixed_size_binary(array.type):
            ends = [(array.offset + number) * array.type.byte_width for number in range(len(array) + 1)]
        else:
            offsets = memoryview(array.buffers()[1]).cast("B")
            wide = offsets.cast("q") if kinds.is_large_binary(array.type) else offsets.cast("i")
            ends = wide[array.offset :][: len(array) + 1].tolist()
        there = array.is_valid().to_pylist()
        spans = zip(ends[:-1], ends[1:], labels, there, strict=True)
        return [self._picture(buffer, start, stop, label) if valid else None for start, stop, label, valid in spans]

    def _picture(self, buffer: Any, start: int, stop: int, label: str) -> PictureBytes:
        content = memoryview(buffer)[start:stop] if buffer is not None else memoryview(b"")
        offset = buffer.address + start - self.address if buffer is not None else -1
        mapped = self.size > 0 and offset >= 0 and offset + len(content) <= self.size
        return PictureBytes(content, label, self.file if mapped else None, offset if mapped else 0)

    def classes(self, name: str, values: list[Any]) -> list[Any]:
        """Return the values of a column, numbers of classes as their names."""
        known = self.features.classes.get(name)
        if known is None:
            return values
        return [known[value] if isinstance(value, int) and 0 <= value < len(known) else None for value in values]


def _rows(batches: Any, cells: _Cells) -> Iterator[Record]:
    """Yield the rows of record batches, of which each is checked before anything is read through its offsets."""
    number = -1
    for batch in batches:
        batch.validate(full=True)
        names = batch.schema.names
        for start in range(0, batch.num_rows, ROWS_AT_ONCE):
            part = batch.slice(start, ROWS_AT_ONCE)
            rows = range(number + 1, number + 1 + part.num_rows)
            columns = [
                cells.classes(name, cells.of(part.column(place), name, rows)) for place, name in enumerate(names)
            ]
            for row in zip(*columns, strict=True):
                number += 1
                yield Record(f"row {number}", number, dict(zip(names, row, strict=True)))


def _is_list(kind: Any) -> bool:
    import pyarrow.types as kinds

    lists = kinds.is_list, kinds.is_large_list, kinds.is_fixed_size_list, kinds.is_list_view, kinds.is_large_list_view
    return any(is_one(kind) for is_one in lists)


def _is_view(kind: Any) -> bool:
    """Return whether bytes lie as polars writes them: each may be in another buffer."""
    import pyarrow.types as kinds

    return bool(kinds.is_binary_view(kind))


def _has_bytes(kind: Any) -> bool:
    import pyarrow.types as kinds

    if kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_fixed_size_binary(kind) or _is_view(kind):
        return True
    parts = [kind.field(number).type for number in range(kind.num_fields)] if kinds.is_nested(kind) else []
    return any(map(_has_bytes, parts))


def _features(schema: Any, file: Path) -> _Features:
    """Return what `datasets` noted of the columns; nothing where it noted nothing, or something else."""
    features: Any = {}
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    found = (
        {name: value for name, value in features.items() if isinstance(value, dict)}
        if isinstance(features, dict)
        else {}
    )
    for name, value in found.items():
        if value.get("_type") in _MOVING:
            raise DataError(
                f"{file}: column {shown(name)} holds {value['_type'].lower()}, but videos and sounds can't be shown",
                "columns of pictures and texts",
                "take frames as pictures, or remove the column",
            )
    names = {name: value.get("names") for name, value in found.items() if value.get("_type") == "ClassLabel"}
    return _Features({name: known for name, known in names.items() if isinstance(known, list)})


def _damaged(file: Path, kind: str, error: BaseException) -> DataError:
    return DataError(
        f"{file} is no {kind} file that can be read: {first_line(error)}",
        "a whole file, as pyarrow, pandas or datasets write it",
        "copy or write it again",
    )
