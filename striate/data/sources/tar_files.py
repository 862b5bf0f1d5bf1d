"""Records of WebDataset tars: members that share a name up to its first dot are one sample. No torch.

Nothing is unpacked: texts are read up to a size, and pictures stay where they lie in the archive.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from striate.data.picture_names import KEYS, MEDIA_FILE, MOVING
from striate.data.sources.records import TRAINING_FILE, Record
from striate.data.sources.stored_pictures import MOST_BYTES, PictureBytes
from striate.errors import DataError, first_line
from striate.printable import shown
from striate.storage.read_files import as_object, parse_json

MOST_TEXT = 2**24
TEXTS = ("json", "txt", "text", "caption", "cls", "question", "answer")
_NAMES = ("image", "images", "path", "url", "image_url")
_ALLOWED = "samples such as 000.jpg with 000.json; the .json holds the sample in one of the forms of docs/data.md"


def tar_records(file: Path) -> Iterator[Record]:
    """Yield each sample of a tar: the fields of its .json, its other texts by their endings, and its pictures.

    Raises:
        DataError: no tar, a compressed one, a link or a device in it, a member that is too large, or a video or sound.
    """
    try:
        with tarfile.open(file, "r:") as archive:
            looked = False
            for number, (key, members) in enumerate(_groups(archive, file)):
                if not looked and len({_is_text(member) for member in members}) == 1:
                    looked = True
                    _check_beside(key, members[-1], file)
                yield Record(f"sample {shown(key)}", number, _fields(key, members, archive, file))
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        raise DataError(
            f"{file} is no tar that can be read: {first_line(error)}",
            "an uncompressed tar",
            "unpack what is compressed (gunzip), or copy the file again",
        ) from error


def _groups(archive: tarfile.TarFile, file: Path) -> Iterator[tuple[str, list[tarfile.TarInfo]]]:
    """Yield the members of each sample; they stand beside each other."""
    group: list[tarfile.TarInfo] = []
    before = ""
    for member in archive:
        # The archive would remember every member.
        archive.members = []  # type: ignore[attr-defined]
        name = member.name.rpartition("/")[2]
        if member.isdir() or name.startswith("."):
            continue
        if not member.isreg() or member.issparse():
            raise DataError(
                f"{file}: member {shown(member.name)} is a link, a device or sparse",
                _ALLOWED,
                "write the archive with files only",
            )
        key = _key(member)
        if group and key != before:
            yield before, group
            group = []
        before = key
        group.append(member)
    if group:
        yield before, group


def _check_beside(key: str, last: tarfile.TarInfo, file: Path) -> None:
    """Raise if members of a sample that is all text, or all pictures, stand elsewhere in the archive.

    Looked up once a file, whose other samples are written in the same way.
    """
    with tarfile.open(file, "r:") as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]
            if member.offset > last.offset and member.isreg() and _key(member) == key:
                raise DataError(
                    f"{file}: {shown(last.name)} and {shown(member.name)} are one sample, and others stand between"
                    " them",
                    "the members of a sample beside each other, as 000.jpg, 000.json, 001.jpg, 001.json",
                    "write the archive in the order of names: tar --sort=name -cf NEW.tar FOLDER",
                )


def _key(member: tarfile.TarInfo) -> str:
    """Return what members of one sample share: folder and name up to its first dot."""
    folder, slash, name = member.name.removeprefix("./").rpartition("/")
    return folder + slash + name.partition(".")[0]


def _is_text(member: tarfile.TarInfo) -> bool:
    return member.name.rpartition("/")[2].partition(".")[2].lower() in TEXTS


def _fields(key: str, members: list[tarfile.TarInfo], archive: tarfile.TarFile, file: Path) -> dict[str, Any]:
    """Return the record of one sample."""
    record: dict[str, Any] = {}
    texts: dict[str, str] = {}
    pictures: dict[str, PictureBytes] = {}
    for member in members:
        ending = member.name.rpartition("/")[2].partition(".")[2].lower()
        place = f"{file}: member {shown(member.name)}"
        if ending in texts or (ending == "json" and record):
            raise DataError(
                f"{place} is there twice in one sample", _ALLOWED, "name the samples differently, or write one of both"
            )
        if MOVING.fullmatch(member.name):
            raise DataError(f"{place}: videos and sounds can't be shown", _ALLOWED, "take frames as pictures")
        if ending in TEXTS:
            text = _text(member, archive, place)
            if ending == "json":
                record = as_object(parse_json(text, place, TRAINING_FILE), place, TRAINING_FILE)
            else:
                texts[ending] = text
        elif MEDIA_FILE.fullmatch(member.name):
            content = _content(member, archive, place, MOST_BYTES)
            pictures[member.name] = PictureBytes(content, place, file, member.offset_data)
    by_name = {name.rpartition("/")[2]: picture for name, picture in pictures.items()} | pictures
    named = _with_pictures(record, by_name)
    unnamed = {} if named != record or not pictures else {"images": list(pictures.values())}
    if unnamed and (other := next((name for name in KEYS if isinstance(record.get(name), str | list)), "")):
        raise DataError(
            f"{file}: sample {shown(key)} has {shown(next(iter(pictures)))}, and its .json says that {other!r} is"
            f" {shown(record[other])}",
            f"{_ALLOWED}, and names its pictures as the archive does, or not at all",
            f"leave {other!r} out of the .json, or correct it",
        )
    return {"id": key, **texts, **unnamed, **{name: value for name, value in named.items() if value is not None}}


def _with_pictures(value: Any, pictures: Mapping[str, PictureBytes], key: str = "") -> Any:
    """Return a JSON value with the pictures that it names in place of their names."""
    if isinstance(value, dict):
        return {name: _with_pictures(part, pictures, str(name)) for name, part in value.items()}
    if isinstance(value, list):
        return [_with_pictures(part, pictures, key) for part in value]
    return pictures.get(value, value) if isinstance(value, str) and key in _NAMES else value


def _text(member: tarfile.TarInfo, archive: tarfile.TarFile, place: str) -> str:
    try:
        return _content(member, archive, place, MOST_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TRAINING_FILE.refuse(f"{place} is not UTF-8 text: byte {error.start}", "save it as UTF-8") from error


def _content(member: tarfile.TarInfo, archive: tarfile.TarFile, place: str, most: int) -> bytes:
    """Return what a member holds."""
    if member.size > most:
        raise DataError(f"{place} has {member.size} bytes", f"members of at most {most} bytes", "make it smaller")
    # tarfile's own streams read 10 KiB at a time.
    stream = archive.fileobj
    stream.seek(member.offset_data)
    content = bytes(stream.read(member.size))
    if len(content) != member.size:
        raise DataError(f"{place} breaks off", "a whole archive", "copy the file again")
    return content
