"""A model card under another name: that of the folder or hub repository which its code loads from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard

from striate.errors import ModelError, first_line
from striate.models.io.card.card_code import FENCE
from striate.storage.read_files import Form

A_CARD = Form(
    ModelError, "a model card: Markdown, below YAML between two lines of ---", "mend its metadata, or remove it"
)


def named_card(
    text: str, name: str, fields: Mapping[str, Any] | None = None, renamed: Mapping[str, str] | None = None
) -> str:
    """Return the card `text` with `name` as what its code loads, and in its title and metadata.

    Args:
        text: a card; of one that striate did not write only the metadata is changed.
        name: a folder, or a hub id, of which the title has the last part.
        fields: further metadata, such as `license`; what is None is taken out.
        renamed: other models that its code loads, by the names that they have there now.

    Raises:
        ModelError: its metadata can't be read.
    """
    try:
        card = ModelCard(text)
    # What is no YAML, or none that the hub takes, raises as many kinds of errors.
    except Exception as error:
        raise A_CARD.refuse(f"the model card can't be read: {first_line(error)}") from error
    old, short = card.data.get("model_name"), name.rpartition("/")[2]
    for field, value in {**(fields or {}), "model_name": short}.items():
        if value is None:
            card.data.pop(field)
        else:
            setattr(card.data, field, value)
    body = card.text
    if isinstance(old, str) and old:
        names = {repr(before): repr(now) for before, now in {**(renamed or {}), old: name}.items()}
        any_name = re.compile("|".join(map(re.escape, names)))
        code = re.compile(rf"^{FENCE}python$.*?^{FENCE}$", re.MULTILINE | re.DOTALL)
        body = code.sub(lambda found: any_name.sub(lambda one: names[one[0]], found[0]), body)
        for before, now in (renamed or {}).items():
            body = body.replace(f"Base model: `{before}`.", f"Base model: `{now}`.", 1)
        body = re.sub(rf"^(\s*# ){re.escape(old)}(?=:)", lambda found: f"{found[1]}{short}", body)
    return f"---\n{card.data.to_yaml()}\n---\n{body}"


def metadata_of(text: str) -> dict[str, Any]:
    """Return the metadata of the card `text`; raises as `named_card`."""
    try:
        return dict(ModelCard(text).data.to_dict())
    except Exception as error:
        raise A_CARD.refuse(f"the model card can't be read: {first_line(error)}") from error
