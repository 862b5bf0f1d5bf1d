"""Safetensors checkpoints as byte ranges: read where each tensor lies, and write chosen ones under new names.

The format (https://huggingface.co/docs/safetensors): 8 bytes with the header's length, little-endian; a JSON header
with dtype, shape and byte range of each tensor; then the tensors' bytes without gaps. Nothing here decodes a tensor:
of those that are copied one buffer is in memory, looked at for values that are no numbers, and every dtype comes
through unchanged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from striate.errors import ModelError
from striate.models.io.json_files import object_of
from striate.models.io.model_folder import CONFIG, model_file, weight_map
from striate.models.io.weights.finite_bytes import PassingNumbers, not_finite
from striate.storage.atomic import write_text

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
NAMED = "transformers_weights"
"""The key of config.json that names other weights than these."""
ALLOWED = "model.safetensors, or its shards with model.safetensors.index.json"
AGAIN = "download or save the model again"
# Larger ones leave the cache of a core, and take three times as long to look at.
_BUFFER = 1 << 18
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_LENGTH_BYTES, _MOST_HEADER = 8, 100_000_000


@dataclass(frozen=True)
class Cut:
    """A part of a tensor: in each of `rows`, the blocks `kept` of `size` bytes, out of `blocks`."""

    rows: int
    blocks: int
    size: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """One tensor on disk: its file, dtype code (`BF16`, ...), shape, first and last byte, and what is left of it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    cut: Cut | None = None

    @property
    def size(self) -> int:
        """Bytes of the tensor, once cut."""
        return self.cut.rows * len(self.cut.kept) * self.cut.size if self.cut else self.end - self.begin

    @property
    def numel(self) -> int:
        """Elements of the tensor, once cut."""
        return math.prod(self.shape)

    def only(self, axis: int, kept: Sequence[int], blocks: int) -> Stored:
        """Return the tensor with only the blocks `kept` of its equal `blocks` along `axis`."""
        rows = math.prod(self.shape[:axis])
        length = self.shape[axis] // blocks * len(kept)
        cut = Cut(rows, blocks, (self.end - self.begin) // (rows * blocks), tuple(kept))
        return replace(self, shape=(*self.shape[:axis], length, *self.shape[axis + 1 :]), cut=cut)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield where the tensor's bytes are, in order: first byte and how many."""
        if self.cut is None:
            yield self.begin, self.size
            return
        for row in range(self.cut.rows):
            for block in self.cut.kept:
                yield self.begin + (row * self.cut.blocks + block) * self.cut.size, self.cut.size


@dataclass(frozen=True)
class Computed:
    """One tensor that is made when its place in the file is reached: its dtype code, shape, bytes, and what makes them.

    `content` returns the tensor's bytes, in the order of the format.
    """

    dtype: str
    shape: tuple[int, ...]
    size: int
    content: Callable[[], bytes | memoryview]

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)


Written = Stored | Computed


def parameter_count(tensors: Mapping[str, Written]) -> int:
    """Return how many numbers of `tensors` are parameters: running statistics of normalisation layers are none."""
    return sum(tensor.numel for name, tensor in tensors.items() if name.rpartition(".")[2] not in _STATISTICS)


def read_shards(folder: Path) -> dict[str, Stored]:
    """Return every tensor of the safetensors checkpoint in `folder` by its stored name, in file order.

    Raises:
        ModelError: no weights, a shard that is missing or damaged, or shards and index that disagree.
    """
    index = weights_of(folder)
    if not is_index(index):
        return read_file(index)
    placed = weight_map(index)
    what = f"{index.name} places tensors in"
    missing = sorted(file for file in set(placed.values()) if not model_file(folder, file, what).is_file())
    if missing:
        given = f"{folder} lacks {len(missing)} of {len(set(placed.values()))} shards, for example {missing[0]}"
        raise ModelError(given, f"every shard that {index.name} names", AGAIN)
    tensors: dict[str, Stored] = {}
    for file in sorted(set(placed.values())):
        for name, tensor in read_file(folder / file).items():
            if placed.get(name) != file:
                given = f"{folder / file} holds {name}, but {index.name} places it in {placed.get(name, 'no shard')}"
                raise ModelError(given, "shards and an index of one model", AGAIN)
            tensors[name] = tensor
    lost = sorted(set(placed) - set(tensors))
    if lost:
        given = f"{folder / placed[lost[0]]} lacks {lost[0]}, which {index.name} places there"
        raise ModelError(given, "shards and an index of one model", AGAIN)
    return tensors


def weights_of(folder: Path) -> Path:
    """Return the weights, or the index of shards, that transformers reads of the model in `folder`.

    Raises:
        ModelError: there are none, or config.json names others that are no safetensors, not there or elsewhere.
    """
    named = object_of(folder / CONFIG).get(NAMED)
    if named is not None:
        file = model_file(folder, str(named), f"{CONFIG} names as {NAMED}")
        if not (file.is_file() and file.name.endswith((".safetensors", ".safetensors.index.json"))):
            raise ModelError(
                f"{folder / CONFIG} names {str(named)!r} as {NAMED}, which is no such file of safetensors",
                "the name of a .safetensors file in that folder, or of its .safetensors.index.json",
                f"mend the name; without {NAMED} it is {ALLOWED}",
            )
        return file
    # Where an index is there too, transformers takes the whole file.
    for name in (WHOLE, INDEX):
        if (folder / name).is_file():
            return model_file(folder, name, "weights")
    raise ModelError(f"{folder} has no safetensors weights", ALLOWED, _hint(folder))


def is_index(weights: Path) -> bool:
    """Return whether a file of `weights_of` names shards, and holds no tensors itself."""
    return weights.name.endswith(".json")


def read_file(path: Path) -> dict[str, Stored]:
    """Return the tensors of one safetensors file, in file order.

    Raises:
        ModelError: the file is cut short, or is no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        start = _LENGTH_BYTES + length
        if not 2 <= length <= min(size - _LENGTH_BYTES, _MOST_HEADER):
            raise _damaged(path, f"a header of {length} bytes in a file of {size} bytes")
        try:
            header = json.loads(stream.read(length))
            rows = [(name, row) for name, row in header.items() if name != "__metadata__"]
            tensors = {name: _stored(path, row, start) for name, row in rows}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _damaged(path, "its header can't be read") from error
    end = max((tensor.end for tensor in tensors.values()), default=start)
    if end != size:
        raise _damaged(path, f"its header speaks of {end} bytes, and it has {size}")
    return dict(sorted(tensors.items(), key=lambda item: item[1].begin))


def write_shards(folder: Path, groups: Sequence[Mapping[str, Written]]) -> None:
    """Write each group of tensors, by its new names, as one shard in `folder`, with the index where there are several.

    Raises:
        ModelError: a tensor that is copied has values that are infinite or no numbers.
        OSError: the folder can't be written, or the disk is full.
    """
    files = shard_names(len(groups))
    for file, group in zip(files, groups, strict=True):
        _write(folder / file, group)
    if len(files) > 1:
        placed = {name: file for file, group in zip(files, groups, strict=True) for name in group}
        tensors = [tensor for group in groups for tensor in group.values()]
        write_index(folder, placed, sum(t.numel for t in tensors), sum(t.size for t in tensors))


def shard_names(count: int) -> list[str]:
    """Return the file names that transformers gives to `count` shards."""
    if count == 1:
        return [WHOLE]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def write_index(folder: Path, placed: Mapping[str, str], parameters: int, size: int) -> None:
    """Write the index of a sharded checkpoint: the file of each tensor, all elements and bytes."""
    content = {
        "metadata": {"total_parameters": parameters, "total_size": size},
        "weight_map": dict(sorted(placed.items())),
    }
    write_text(folder / INDEX, json.dumps(content, indent=2) + "\n")


def by_file(tensors: Mapping[str, Stored], names: Mapping[str, str]) -> list[dict[str, Stored]]:
    """Return the tensors that `names` (old to new) keeps, under their new names, one group a source file."""
    groups: dict[Path, dict[str, Stored]] = {}
    for old, new in names.items():
        groups.setdefault(tensors[old].file, {})[new] = tensors[old]
    return [dict(sorted(group.items(), key=lambda item: item[1].begin)) for group in groups.values()]


def _write(path: Path, group: Mapping[str, Written]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in group.items():
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.size],
        }
        offset += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    with path.open("wb") as target:
        target.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        _write_all(target, group.items())


def _write_all(target: BinaryIO, tensors: Iterable[tuple[str, Written]]) -> None:
    """Write the bytes of each tensor to `target`, opening each source file once."""
    source: BinaryIO | None = None
    try:
        for name, tensor in tensors:
            if isinstance(tensor, Computed):
                if target.write(tensor.content()) != tensor.size:
                    raise ValueError(f"{name} was made with other than {tensor.size} bytes")
                continue
            if source is None or source.name != str(tensor.file):
                if source is not None:
                    source.close()
                source = tensor.file.open("rb")
            for chunk in _chunks(source, tensor):
                target.write(chunk)
    finally:
        if source is not None:
            source.close()


def check_finite_file(path: Path) -> None:
    """Return if every tensor of a safetensors file is of finite numbers, or a mask; a buffer of it is in memory.

    Raises:
        ModelError: another has an infinite value or no number, or the file is damaged.
    """
    with path.open("rb") as source:
        for tensor in read_file(path).values():
            for _ in _chunks(source, tensor):
                pass


def _chunks(source: BinaryIO, tensor: Stored) -> Iterator[bytes]:
    """Yield the bytes of a tensor out of its open file, and raise at values that are no numbers."""
    numbers = PassingNumbers(tensor.dtype)
    for begin, size in tensor.pieces():
        source.seek(begin)
        while size:
            chunk = source.read(min(size, _BUFFER))
            if not chunk:
                raise OSError(f"{source.name} ends early")
            if not numbers.fine(chunk):
                raise not_finite(tensor.file, _name_of(tensor))
            yield chunk
            size -= len(chunk)


def _name_of(tensor: Stored) -> str:
    """Return the name that a tensor has in its file."""
    place = (tensor.begin, tensor.end)
    return next(name for name, other in read_file(tensor.file).items() if (other.begin, other.end) == place)


def _stored(path: Path, row: Mapping[str, Any], start: int) -> Stored:
    begin, end = row["data_offsets"]
    if not 0 <= begin <= end:
        raise ValueError("a tensor that ends before it begins")
    return Stored(path, str(row["dtype"]), tuple(row["shape"]), start + int(begin), start + int(end))


def _damaged(path: Path, reason: str) -> ModelError:
    return ModelError(f"{path} is damaged: {reason}", "a whole safetensors file", AGAIN)


def _hint(folder: Path) -> str:
    if any(folder.glob("pytorch_model*.bin")):
        return "it holds .bin files: load it with striate.load_model and save it again with save_pretrained"
    return AGAIN
