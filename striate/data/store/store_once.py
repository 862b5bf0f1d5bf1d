"""Large sources are read and checked once: afterwards their samples come from the cache folder. No torch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from shutil import rmtree

from striate.data.samples import Sample
from striate.data.sources.image_folder import ImageFolder, rivals, stands
from striate.data.sources.source_files import SourceFiles
from striate.data.sources.source_options import SourceOptions
from striate.data.store.stored_samples import StoredSamples, write_samples
from striate.errors import StriateError
from striate.progress import Silent
from striate.storage.atomic import cache_folder
from striate.storage.file_digests import file_digests
from striate.storage.fingerprints import fingerprint_of
from striate.storage.made_once import made_once
from striate.version import __version__

KIND, RIVALS = "samples", "rivals.json"
WORTH_BYTES = 64 * 2**20
"""Sources of fewer bytes are parsed whenever they are read, and held in memory."""
_DAYS = 30


def stored_samples(
    source: SourceFiles, options: SourceOptions, samples: Callable[[], Iterator[Sample]]
) -> StoredSamples | None:
    """Return the samples of a large source, from the cache folder; None of a small one.

    What lies there counts only for the same bytes in the same folder, read in the same way by the same version, and
    only while every picture's name still leads to the same place, and to it alone; else `samples` are read again. What
    was not asked for in a month is removed when another source is stored.

    Raises:
        DataError: a sample can't be read.
        ArtifactError: the cache folder can't be written.
        OSError: a file of the source can't be read.
    """
    if sum(file.stat().st_size for file in source.files) < WORTH_BYTES:
        return None
    how = {**options.noted(), "images": [str(root.absolute()) for root in options.images]}
    digests = list(file_digests(source.folder, source.files).values())
    follows = {"files": digests, "in": str(source.folder.absolute()), "how": how, "by": __version__}
    place = cache_folder() / KIND / fingerprint_of(follows)
    if place.exists() and not _stand(place, source.folder, options):
        rmtree(place, ignore_errors=True)
    if not place.exists():
        _remove_unused(place.parent)

    def write(folder: Path) -> None:
        write_samples(samples(), folder, source.folder)
        (folder / RIVALS).write_text(json.dumps(sorted(_rivalled(folder, source.folder, options))), encoding="utf-8")

    made_once(place, write, Silent())
    with suppress(OSError):
        place.touch()
    return StoredSamples(place, source.folder)


def _stand(place: Path, folder: Path, options: SourceOptions) -> bool:
    """Return whether each picture is where it was when the samples were stored, and no link leads out by now."""
    with suppress(OSError, ValueError, StriateError):
        stored, images = StoredSamples(place, folder), ImageFolder(folder, options.images)
        if _rivalled(place, folder, options) - set(json.loads((place / RIVALS).read_bytes())):
            return False
        return all(
            stands(folder, name, options.images) and images.find(name, "") == stored.pictures[number]
            if isinstance(name, str)
            else stored.pictures[number].is_file()
            for number, name in enumerate(stored.names)
        )
    return False


def _rivalled(place: Path, folder: Path, options: SourceOptions) -> set[str]:
    """Return the pictures of which another folder of `data.images` has another one of their name.

    When samples are stored these are named by whole paths, as such a name alone is refused.
    """
    if len(options.images) < 2:
        return set()
    names = (name for name in StoredSamples(place, folder).names if isinstance(name, str))
    return {name for name in names if Path(name).is_absolute() and rivals(name, options.images)}


def _remove_unused(folder: Path) -> None:
    """Remove what was not asked for in a month."""
    for place in folder.iterdir() if folder.is_dir() else ():
        with suppress(OSError):
            if place.stat().st_mtime < time.time() - _DAYS * 86400:
                rmtree(place, ignore_errors=True)
