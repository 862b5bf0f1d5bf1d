"""Which pictures a training file names: a large file is parsed once for that, and noted by the digest of its bytes."""

from __future__ import annotations

from pathlib import Path

from striate.data.reading import iter_samples
from striate.data.sources.image_folder import name_in, rivals, stands
from striate.data.sources.source_files import SourceFiles, source_files
from striate.data.sources.source_options import PLAIN, SourceOptions
from striate.data.store.store_once import stored_samples
from striate.storage.file_digests import file_digests
from striate.storage.fingerprints import fingerprint_of
from striate.storage.noted import read_note, write_note
from striate.version import __version__

KIND, WORTH_SAMPLES = "pictures", 1000
"""The pictures of fewer samples are looked up at every call."""


def named_pictures(path: Path, options: SourceOptions = PLAIN) -> list[Path]:
    """Return the picture files that the samples of `path` name, each once; pictures inside its own files are none.

    Those of a large source are known of the stored samples.

    What was noted counts only for the same bytes in the same folder, read in the same way by the same version, and
    only while every name still leads to the same place: a file that takes its place or is missing has the samples
    parsed again.

    Raises:
        DataError: as `read_samples`.
    """
    source = source_files(path)
    try:
        digests = _digests(source)
    except OSError:  # Reading it says what is wrong, by name.
        return _named(path, options)[0]
    if stored := stored_samples(source, options, lambda: iter_samples(path, options)):
        return sorted(picture for picture in stored.pictures if isinstance(picture, Path))
    how = {**options.noted(), "images": [str(root.absolute()) for root in options.images]}
    key = fingerprint_of({"files": digests, "in": str(source.folder.absolute()), "how": how, "by": __version__})
    noted = read_note(KIND, key)
    if noted is not None and all(_stands(source.folder, name, options) for name in noted):
        return [source.folder / name for name in noted]
    pictures, samples = _named(path, options)
    if samples > WORTH_SAMPLES and _digests(source) == digests:
        write_note(KIND, key, [name_in(source.folder, picture) for picture in pictures])
    return pictures


def _stands(folder: Path, name: str, options: SourceOptions) -> bool:
    several = len(options.images) > 1 and Path(name).is_absolute()
    return stands(folder, name, options.images) and not (several and rivals(name, options.images))


def _named(path: Path, options: SourceOptions) -> tuple[list[Path], int]:
    """Return the picture files, and how many samples there are."""
    pictures: set[Path] = set()
    count = 0
    for sample in iter_samples(path, options):
        pictures.update(picture for picture in sample.images if isinstance(picture, Path))
        count += 1
    return sorted(pictures), count


def _digests(source: SourceFiles) -> list[str]:
    return list(file_digests(source.folder, source.files).values())
