"""What a record says a picture is: a file's name, a URL, bytes, or an object with any of these. No torch."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any, TypeAlias
from urllib.parse import unquote

from striate.data.picture_names import KEYS, MOVING, refuse_media_fields, refused_media
from striate.data.rows import Row, as_list
from striate.data.sources.stored_pictures import MOST_BYTES, PictureBytes
from striate.printable import shown
from striate.storage.read_files import parse_json

Reference: TypeAlias = str | PictureBytes
"""A picture's name, or its bytes; an empty name is the next of the record's own pictures."""

NAMED_BY = ("image", "path", "url", "image_url")
_DATA_URL = re.compile(r"data:([\w.+/-]*)((?:;[\w.=+-]+)*),", re.IGNORECASE)
# How the base64 of JPEG, PNG, GIF and WebP begins, where a name would end long before.
_BARE = re.compile(r"(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR)[A-Za-z0-9+/]{80,}={0,2}")
_WANTED = "a file name, a data URL, or a list of these"


def record_pictures(row: Row) -> list[Reference]:
    """Return the pictures under `image` or `images` of a record, in order.

    Raises:
        StriateError: both keys are there and differ, one holds something else, or the record has a video or sound.
    """
    refuse_media_fields(row)
    key = row.one_of(KEYS)
    return [reference(value, key, row, row.fields[key]) for value in _listed(row, key)] if key else []


def reference(value: Any, key: str, row: Row, whole: Any = None) -> Reference:
    """Return the picture that `value`, under `key` of a record, stands for; `whole` is what errors show.

    Raises:
        StriateError: it stands for none, for one on the web, or for a video or sound.
    """
    if isinstance(value, Mapping):
        inner = next((value[name] for name in ("bytes", *NAMED_BY) if value.get(name) is not None), None)
        return _inner(value, inner, key, row)
    if isinstance(value, PictureBytes):
        return value
    if not isinstance(value, str) or not value.strip():
        raise row.refuse(f"`{key}` is {shown(value if whole is None else whole)}", _WANTED, "fix it")
    if MOVING.fullmatch(value):
        raise refused_media(row, f"{shown(key)} is {shown(value)}")
    if _BARE.fullmatch(value):
        return _decoded(f"data:;base64,{value}", row)
    scheme = value[:8].partition(":")[0].lower()
    if scheme == "data":
        return _decoded(value, row)
    if scheme in ("http", "https"):
        raise row.refuse(
            f"picture {shown(value)} is on the web",
            "pictures that lie on this machine",
            "download it, and name the file",
        )
    return unquote(value[len("file:") :].removeprefix("//").removeprefix("localhost")) if scheme == "file" else value


def _listed(row: Row, key: str) -> list[Any]:
    """Return the values under `key`: of a list, of JSON text of one, as a table's cell may hold it, or one alone."""
    value = row.fields[key]
    if isinstance(value, str) and value.startswith('["'):
        value = parse_json(value, f"{row.place}: `{key}`", row.form)
    return as_list(value)


def is_picture(value: Any) -> bool:
    """Return whether `value` is bytes of a picture, or an object or list of such."""
    if isinstance(value, Mapping):
        return isinstance(value.get("bytes"), PictureBytes)
    return isinstance(value, PictureBytes) or (isinstance(value, list) and bool(value) and all(map(is_picture, value)))


def _inner(value: Mapping[str, Any], inner: Any, key: str, row: Row) -> Reference:
    """Return the picture of an object such as {"bytes": ..., "path": ...} or {"url": ...}."""
    if isinstance(inner, str | PictureBytes) and (inner is not value.get("bytes") or isinstance(inner, PictureBytes)):
        return reference(inner, key, row)
    raise row.refuse(f"{key!r} is {shown(dict(value))}", _WANTED, "fix it")


def _decoded(url: str, row: Row) -> PictureBytes:
    """Return the bytes of a data URL in base64."""
    head = _DATA_URL.match(url)
    if head and head[1].lower().startswith(("video/", "audio/")):
        raise refused_media(row, f"a data URL of {head[1]}")
    problem = "" if head and head[2].lower().endswith(";base64") else "it is not in base64"
    if len(url) > MOST_BYTES // 3 * 4:
        problem = f"it has {len(url)} characters"
    try:
        content = b"" if problem else base64.b64decode(url[head.end() if head else 0 :], validate=True)
    except (binascii.Error, ValueError) as error:
        problem = str(error)
    if problem or not content:
        raise row.refuse(
            f"can't read the data URL {shown(url, 40)}: {problem or 'it is empty'}",
            f"data:image/png;base64,... of at most {MOST_BYTES} bytes",
            "write the picture again, or name its file",
        )
    return PictureBytes(content, f"{row.place}: picture in a data URL")
