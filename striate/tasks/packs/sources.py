"""Parse and read what `evaluate.packs` names: a test pack, or a published benchmark's files. No torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from striate.errors import DataError, SpecError, did_you_mean
from striate.printable import shown
from striate.storage.fingerprints import EARLIER_LENGTH, earlier_fingerprint, fingerprint_of, visible_files
from striate.storage.inside import inside
from striate.storage.read_files import user_path
from striate.tasks.benchmarks import BENCHMARKS
from striate.tasks.benchmarks.formats.release import Release
from striate.tasks.metrics import METRICS
from striate.tasks.packs.items import Item, Pack
from striate.tasks.packs.reader import FILE_NAME, pack_name, read_pack, spread

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".gif", ".webp", ""})
PREFIX = re.compile(r"([a-z][a-z0-9+_-]+)(?:@(\d+))?:(.+)", re.DOTALL)


@dataclass(frozen=True)
class Source:
    """Where test items come from: `folder`, read as a benchmark with `shots` examples, or as a pack without a name.

    A pack's pictures may lie under `images` too (`data.images`).
    """

    folder: Path
    benchmark: str = ""
    shots: int | None = None
    images: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """The name of its pack."""
        return self.benchmark or pack_name(self.folder)


def parse_source(text: str) -> Source:
    """Return what `FOLDER`, `NAME:FOLDER` or `NAME@SHOTS:FOLDER` stands for.

    A folder that exists under the whole text is a pack, whatever its name.

    Raises:
        SpecError: a benchmark that does not exist, or shots for one that has no place for examples, or too many.
    """
    match = PREFIX.fullmatch(text)
    if match is None or user_path(text).exists():
        return Source(user_path(text))
    name, shots, folder = match[1], match[2], user_path(match[3])
    if name not in BENCHMARKS:
        raise SpecError(
            f"unknown benchmark {name!r} in {text!r}",
            f"FOLDER, or NAME:FOLDER with NAME one of {', '.join(BENCHMARKS.names())}",
            f"{did_you_mean(name, BENCHMARKS.names())}see `striate ls tasks`",
        )
    most = BENCHMARKS.get(name).shots
    if shots is not None and (most is None or int(shots) > most):
        raise SpecError(
            f"{text!r} asks for {shots} worked examples",
            f"at most {most}" if most is not None else f"none: {name} is asked without examples",
            f"write {name}:{match[3]}",
        )
    return Source(folder, name, None if shots is None else int(shots))


def check_pack_names(names: Sequence[str]) -> None:
    """Check that test packs have different names, since predictions are told apart by them.

    Raises:
        DataError: two are called the same.
    """
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(
            f"two test packs are called {shown(repeated[0])}",
            "folders of different names",
            "rename or drop one of them",
        )


def read_source(source: Source, limit: int | None = None, pictures: Path | None = None) -> Pack:
    """Return the pack that `source` stands for; with `limit`, a subset of at most that many items, see `spread`.

    Args:
        source: as `parse_source` returns it.
        limit: the most items.
        pictures: a folder for pictures that lie inside other files (Parquet, base64): those of the chosen items are
            written to `pictures/NAME`, where they don't lie yet. None: none are written, for a check of the files.

    Raises:
        DataError: files that are missing or not as they were published, a missing picture, no items.
    """
    if not source.benchmark:
        return read_pack(source.folder, limit, source.images)
    benchmark = BENCHMARKS.get(source.benchmark)
    release = Release(
        benchmark.name,
        source.folder,
        benchmark.layout,
        benchmark.source,
        inside(pictures or source.folder, benchmark.name, what="the folder for pictures"),
        benchmark.shots or 0 if source.shots is None else source.shots,
    )
    items = [_checked(item, release) for item in benchmark.function(release)]
    if not items:
        raise release.damaged(source.folder, "holds no question to ask")
    chosen = items if limit is None else spread(items, limit)
    if pictures is not None and benchmark.unpack:
        benchmark.unpack(release, chosen)
    if pictures is not None or not benchmark.unpack:
        _check_pictures(chosen, release)
    return Pack(benchmark.name, source.folder, tuple(_numbered(chosen)))


def read_of(source: Source, pack: Pack) -> list[Path]:
    """Return the files that `pack` was read from `source`: questions, and the pictures of its items.

    Of a benchmark all files that are no pictures count as questions, and only pictures that lie there.
    """
    pictures = [path for item in pack.items for path in item.images]
    if not source.benchmark:
        return [source.folder / FILE_NAME, *pictures]
    pictures = [path for path in pictures if path.is_relative_to(source.folder)]
    return [*(path for path in visible_files(source.folder) if not _is_picture(path)), *pictures]


def earlier_release_fingerprint(folder: Path) -> str:
    """Return the hash of a benchmark's folder that earlier versions noted: of pictures, only their sizes.

    Raises:
        ArtifactError: it can't be read.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size if _is_picture(path) else earlier_fingerprint(path)
        for path in files
    }
    return fingerprint_of(sizes)[:EARLIER_LENGTH]


def _is_picture(path: Path) -> bool:
    """Return whether a file's name, or its lack of an ending, is that of a picture (SEED-Bench's have none)."""
    return path.suffix.lower() in PICTURES


def _checked(item: Item, release: Release) -> Item:
    problem = METRICS.get(item.metric).check(item)
    if problem:
        raise release.damaged(release.folder, f"question {item.id!r}: {problem}")
    return item


def _check_pictures(items: Sequence[Item], release: Release) -> None:
    missing = [path for item in items for path in item.images if not path.is_file()]
    if missing:
        raise DataError(
            f"benchmark {release.name}: no picture {missing[0]} ({len(missing)} are missing)",
            f"the published files: {', '.join(release.layout)}",
            f"fetch the pictures too; they come from {release.source}",
        )


def _numbered(items: Sequence[Item]) -> list[Item]:
    """Return the items with ids that occur before told apart by a number: predictions are compared by id."""
    seen: dict[str, int] = {}
    numbered = []
    for item in items:
        count = seen[item.id] = seen.get(item.id, 0) + 1
        numbered.append(item if count == 1 else replace(item, id=f"{item.id}#{count}"))
    return numbered
