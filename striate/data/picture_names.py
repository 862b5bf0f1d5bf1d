"""Which pictures a record names; a video, a sound or a picture under another name is never passed over. No torch."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from striate.data.rows import Row, as_list
from striate.errors import StriateError
from striate.printable import shown

KEYS = ("image", "images")
OTHER_MEDIA = re.compile(r"(?:videos?|audios?)(?:_(?:path|file|url)s?)?", re.IGNORECASE)
_STILL = "jpe?g|jpe|jfif|a?png|webp|gif|bmp|tiff?|hei[cf]|avif|jp2|jxl|p[bgnp]m|svg"
_MOVES = "mp4|m4v|mpe?g|wmv|flv|3gp|avi|mov|mkv|webm|wav|mp3|flac|ogg|opus|aac|m4a"
MEDIA_FILE = re.compile(rf"data:(?:image|video|audio)/.*|.*\.(?:{_STILL}|{_MOVES})", re.IGNORECASE | re.DOTALL)
MOVING = re.compile(rf"data:(?:video|audio)/.*|.*\.(?:{_MOVES})", re.IGNORECASE | re.DOTALL)
MEDIA_PLACEHOLDER = re.compile(r"^[ \t]*<(video|audio)>[ \t]*$|\A\s*<(video|audio)>", re.MULTILINE)
ONLY_PICTURES = "pictures, under 'image' or 'images'"


def picture_names(row: Row) -> list[str]:
    """Return the names under `image` or `images` of a record, in order.

    Raises:
        StriateError: both keys are there and differ, one holds something else, or the record has a video or sound.
    """
    refuse_media_fields(row)
    key = row.one_of(KEYS)
    names = as_list(row.fields[key]) if key else []
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise row.refuse(f"`{key}` is {shown(row.fields[key])}", "a file name or a list of file names", "fix it")
    return names


def refuse_media_fields(row: Row) -> None:
    """Raise if a record has a field for a video or a sound, and something in it."""
    for key in row.fields:
        if isinstance(key, str) and OTHER_MEDIA.fullmatch(key) and row.fields[key] not in (None, "", []):
            raise refused_media(row, f"{shown(key)} is {shown(row.fields[key])}")


def refuse_other_names(row: Row, texts: Collection[str], training: bool = False) -> None:
    """Raise if a record without pictures has a field that names one: it would be asked or trained as text.

    Args:
        row: the record.
        texts: its keys with texts, where a file's name is no picture to show.
        training: whether it is of training data, which has the setting `data.columns`.
    """
    for key, value in row.fields.items():
        if key not in texts and key != "id" and _is_media(value):
            if all(isinstance(name, str) and MOVING.fullmatch(name) for name in as_list(value)):
                raise refused_media(row, f"{shown(key)} is {shown(value)}")
            columns = f"set data.columns={{image: {shown(key, 30)}}}, " if training else ""
            raise row.refuse(
                f"no picture under 'image' or 'images', but {shown(key)} is {shown(value)}",
                ONLY_PICTURES,
                f"{columns}rename {shown(key)} to 'image', or remove it if the sample has no picture",
            )


def refuse_other_media(row: Row, text: str) -> None:
    """Raise if a question holds `<video>` or `<audio>` where such a placeholder stands: first, or alone on a line."""
    found = MEDIA_PLACEHOLDER.search(text) if "<" in text else None
    name = found and (found[1] or found[2])
    if name and f"</{name}>" not in text:
        raise refused_media(row, f"<{name}> in a question")


def refused_media(row: Row, what: str) -> StriateError:
    """Return the error for a record that holds a video or a sound, `what` says where."""
    return row.refuse(
        f"{what}, but videos and sounds can't be shown", ONLY_PICTURES, "take frames as pictures, or remove the sample"
    )


def _is_media(value: Any) -> bool:
    values = as_list(value)
    return bool(values) and all(isinstance(name, str) and MEDIA_FILE.fullmatch(name) for name in values)
