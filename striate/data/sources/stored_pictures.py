"""Pictures that lie inside other files (tar, Arrow, Parquet, data URLs): read from there when they are shown. No torch.

A tar or an uncompressed Arrow file is read in place. What can't be addressed, as in Parquet, is written once to the
cache folder, under the digest of its bytes.
"""

from __future__ import annotations

import errno
import hashlib
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

from striate.errors import DataError
from striate.storage.atomic import cache_folder, cannot_write, temporary_beside

MOST_BYTES = 2**28
KIND = "stored-pictures"


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """A picture of `size` bytes at `offset` of `file`, with the SHA-256 of those bytes; `label` names it in errors.

    It has those parts of a path's interface that pictures need. Two with the same bytes are equal, wherever they lie.
    """

    digest: str
    file: Path = field(compare=False)
    offset: int = field(compare=False)
    size: int = field(compare=False)
    label: str = field(compare=False)

    def __str__(self) -> str:
        return self.label

    @property
    def name(self) -> str:
        """What stands for the picture: the digest of its bytes."""
        return self.digest

    def resolve(self) -> StoredPicture:
        """Return the picture itself: no link leads to it."""
        return self

    def read_bytes(self) -> bytes:
        """Return what the picture's file would hold.

        Raises:
            OSError: it can't be read, or is no longer what was read as a sample.
        """
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            content = stream.read(self.size)
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise OSError(errno.EIO, f"{self.file} was changed since the samples were read")
        return content

    def open(self, mode: str = "rb") -> BytesIO:
        """Return a stream of `read_bytes`; raises as that. The only mode is `rb`."""
        if mode != "rb":
            raise ValueError(f"mode {mode!r}: stored pictures are only read")
        return BytesIO(self.read_bytes())

    def is_file(self) -> bool:
        """Return whether the file that holds the picture is there and long enough."""
        with suppress(OSError):
            return self.file.stat().st_size >= self.offset + self.size
        return False


Picture: TypeAlias = Path | StoredPicture
"""A picture's file, or a picture inside another file."""


@dataclass(frozen=True)
class PictureBytes:
    """The bytes of a picture in a record, not stored yet; `file` and `offset`: where they lie as they are, if so."""

    content: bytes | memoryview = field(repr=False)
    label: str
    file: Path | None = None
    offset: int = 0

    def stored(self) -> StoredPicture:
        """Return the picture where it lies; written to the cache folder if it lies nowhere by itself.

        Raises:
            DataError: it is empty or larger than `MOST_BYTES`.
            ArtifactError: the cache folder can't be written.
        """
        content = memoryview(self.content)
        if not 0 < content.nbytes <= MOST_BYTES:
            raise DataError(
                f"{self.label}: the picture has {content.nbytes} bytes",
                f"from 1 to {MOST_BYTES} bytes",
                "replace the picture or remove the sample",
            )
        digest = hashlib.sha256(content).hexdigest()
        if self.file is not None:
            return StoredPicture(digest, self.file, self.offset, content.nbytes, self.label)
        return StoredPicture(digest, _kept(digest, content), 0, content.nbytes, self.label)


def _kept(digest: str, content: memoryview) -> Path:
    """Return the file in the cache folder that holds `content`; what is read of it is held against the digest."""
    path = cache_folder() / KIND / digest[:2] / digest
    with suppress(OSError):
        if path.stat().st_size == content.nbytes:
            return path
    temporary: Path | None = None
    try:
        temporary = temporary_beside(path)
        temporary.write_bytes(content)
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
    return path
