"""The words of one turn: text, or content blocks as of Hugging Face, TRL, OpenAI and Qwen. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from striate.data.forms.picture_values import NAMED_BY, Reference, reference
from striate.data.picture_names import MEDIA_FILE, refused_media
from striate.data.rows import Row
from striate.data.samples import PLACEHOLDER
from striate.printable import shown

# OpenAI has two names for each kind.
TEXTS, PICTURES = ("text", "input_text", "output_text"), ("image", "image_url", "input_image")
MEDIA = ("video", "video_url", "input_video", "audio", "audio_url", "input_audio")
_ALLOWED = 'blocks {"type": "text", "text": ...} and {"type": "image"}'
# Qwen-VL's own tag for a picture, within the text.
_TAGGED = re.compile(rf"{PLACEHOLDER}|<img>([^<>\n]+)</img>")


def turn_text(content: Any, pictures: list[Reference], row: Row) -> str:
    """Return the words of a turn, a placeholder for each picture; adds to `pictures` what each of those names.

    Raises:
        StriateError: the content is neither text nor a list of blocks, or a block is of another kind.
    """
    if isinstance(content, str):
        return _plain(content, pictures, row)
    if not isinstance(content, list):
        raise row.refuse(f"its content is a {type(content).__name__}", "text, or a list of blocks")
    return "".join(_block(block, pictures, row) for block in content)


def _block(block: Any, pictures: list[Reference], row: Row) -> str:
    """Return one content block as text, adding to `pictures` what each placeholder in it names."""
    fields = {key: value for key, value in block.items() if value is not None} if isinstance(block, Mapping) else {}
    # Qwen leaves the type out.
    kind = fields.get("type", next((key for key in (*TEXTS, *PICTURES, *MEDIA) if key in fields), None))
    if kind in MEDIA:
        raise refused_media(row, f"a content block of type {kind}")
    if kind in TEXTS and isinstance(fields.get("text"), str):
        return _plain(fields["text"], pictures, row)
    if kind in PICTURES:
        inner = Row(fields, row.place, row.form)
        key = inner.one_of(NAMED_BY)
        pictures.append(reference(fields[key], key, inner) if key else "")
        return PLACEHOLDER
    raise row.refuse(f"can't use content block {shown(block)}", _ALLOWED)


def _plain(text: str, pictures: list[Reference], row: Row) -> str:
    """Return text with placeholders for the pictures in it, of which Qwen-VL's tags name theirs."""
    if "<" not in text:
        return text

    def placeholder(found: re.Match[str]) -> str:
        if found[1] is not None and not MEDIA_FILE.fullmatch(found[1]):
            return found[0]
        pictures.append("" if found[1] is None else reference(found[1], "img", row))
        return PLACEHOLDER

    return _TAGGED.sub(placeholder, text)
