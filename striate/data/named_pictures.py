"""Which pictures a training file names: a large file is parsed once for that, and noted by the digest of its bytes."""

from __future__ import annotations

from pathlib import Path

from striate.data.parsing import IMAGES_FOLDER
from striate.data.reading import read_samples, training_file
from striate.storage.file_digests import file_digests
from striate.storage.fingerprints import fingerprint_of
from striate.storage.noted import read_note, write_note
from striate.version import __version__

KIND, WORTH_PICTURES = "pictures", 1000
"""The pictures of fewer are looked up at every call."""


def named_pictures(path: Path) -> list[Path]:
    """Return the pictures that the samples of `path` name, each once.

    What was noted counts only for the same bytes in the same folder, read by the same version, and only while every
    name still leads to the same place: a file that takes its place or is missing has the samples parsed again.

    Raises:
        DataError: as `read_samples`.
    """
    file = training_file(path)
    try:
        digest = _digest(file)
    except OSError:  # Reading it says what is wrong, by name.
        return _named(file)
    follows = {"file": digest, "in": str(file.absolute()), "by": __version__}
    noted = read_note(KIND, fingerprint_of(follows))
    if noted and all(_stands(file.parent, name) for name in noted):
        return [file.parent / name for name in noted]
    pictures = _named(file)
    if len(pictures) > WORTH_PICTURES and _digest(file) == digest:
        write_note(KIND, fingerprint_of(follows), [str(picture.relative_to(file.parent)) for picture in pictures])
    return pictures


def _named(file: Path) -> list[Path]:
    return sorted({picture for sample in read_samples(file) for picture in sample.images})


def _digest(file: Path) -> str:
    return file_digests(file.parent, [file])[file.name]


def _stands(folder: Path, name: str) -> bool:
    """Return whether the picture is there, and none of that name beside its folder, which would be taken first."""
    inner = name.removeprefix(f"{IMAGES_FOLDER}/")
    return (folder / name).is_file() and (inner == name or not (folder / inner).exists())
