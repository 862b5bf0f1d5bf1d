"""Parses one raw record into a checked `Sample`; every error says where the record stands and what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from striate.data.forms.columns import renamed
from striate.data.forms.content_blocks import turn_text
from striate.data.forms.conversation_forms import TEXT_FIELDS, RawTurn, raw_turns, with_pictures_first
from striate.data.forms.picture_values import Reference, is_picture, record_pictures
from striate.data.forms.plain_turns import plain_turns
from striate.data.picture_names import refuse_other_media, refuse_other_names
from striate.data.rows import Row
from striate.data.samples import PLACEHOLDER, Message, Sample
from striate.data.sources.image_folder import ImageFolder
from striate.data.sources.source_options import PLAIN, SourceOptions
from striate.data.sources.stored_pictures import Picture
from striate.errors import DataError
from striate.printable import shown
from striate.storage.read_files import Form

SAMPLE = Form(DataError, "a sample in one of the forms of docs/data.md", "fix it")


def parse_sample(
    record: Any, place: str, default_id: str, folder: ImageFolder, options: SourceOptions = PLAIN
) -> Sample:
    """Return the checked sample of one record in any of the forms of docs/data.md.

    Args:
        record: the parsed value.
        place: file and position, the start of every error.
        default_id: the id of a record that has none.
        folder: where its pictures are looked for.
        options: how it is read.

    Raises:
        DataError: not a mapping, no or bad turns, unknown role, no answer, a video, or pictures and placeholders that
            differ.
    """
    if not isinstance(record, dict):
        raise DataError(f"{place} is a {type(record).__name__}, not a sample", "a JSON object", "fix it")
    row = renamed(Row(record, place, SAMPLE), options.columns)
    sample_id = row.text("id") if row.fields.get("id") not in (None, "") else default_id
    row = row.at(f"{place} (id {shown(sample_id)})")
    own = record_pictures(row)
    plain = None if options.columns or options.question else plain_turns(row)
    if plain and (plain[1] or not own):
        messages, references = plain[0], list[Reference]([""] * plain[1])
    else:
        messages, references = _full_turns(row, own, options)
    _check_order(messages, row.place)
    if not own and not references:
        _refuse_unused(row)
    pictures = tuple(_found(picture, row, folder) for picture in _matched(own, references, row))
    task = row.text("task") if row.fields.get("task") not in (None, "") else ""
    return Sample(sample_id, tuple(messages), pictures, task)


def _full_turns(row: Row, own: list[Reference], options: SourceOptions) -> tuple[list[Message], list[Reference]]:
    """Return the turns of a record of any form, and what each placeholder in them names, if anything."""
    turns, pictures_first = raw_turns(row, options)
    messages, references = _messages(turns)
    if own and not references and (pictures_first or (options.untagged == "first" and len(own) == 1)):
        return _messages(with_pictures_first(turns, len(own)))
    return messages, references


def _messages(turns: Sequence[RawTurn]) -> tuple[list[Message], list[Reference]]:
    """Return the turns, and for each placeholder the picture that its content names, or an empty name."""
    messages: list[Message] = []
    references: list[Reference] = []
    for role, content, row in turns:
        before = len(references)
        text = turn_text(content, references, row)
        # Templates have a space of their own before an answer; two would be other tokens.
        message = Message(role, text.strip() if role == "assistant" else text)
        if message.images != len(references) - before:
            raise row.refuse(f"{PLACEHOLDER} is cut between two blocks", "each placeholder within one block")
        if message.images and role != "user":
            raise row.refuse(f"{PLACEHOLDER} in a turn of {role}", "pictures in user turns", "move it")
        if role == "user":
            refuse_other_media(row, message.text)
        messages.append(message)
    return messages, references


def _refuse_unused(row: Row) -> None:
    """Raise if a record without pictures has a field that holds or names one: it would be trained as text."""
    key = next((key for key, value in row.fields.items() if is_picture(value)), None)
    if key is not None:
        raise row.refuse(
            f"no picture under 'image' or 'images', but {shown(key)} holds one",
            "pictures under 'image' or 'images'",
            f"set data.columns={{image: {key}}}, or remove {shown(key)}",
        )
    refuse_other_names(row, TEXT_FIELDS, training=True)


def _matched(own: list[Reference], references: list[Reference], row: Row) -> list[Reference]:
    """Return one picture for every placeholder: its block's own, or else the next of the record's."""
    unnamed = references.count("")
    if own == references:
        return own
    if unnamed != len(own):
        untagged = ", or set data.untagged=first" if len(own) == 1 and not references else ""
        raise row.refuse(
            f"it has {len(references)} {PLACEHOLDER} placeholders and {len(own) + len(references) - unnamed} pictures",
            "one placeholder for every picture, in order",
            f"add {PLACEHOLDER} to the question where it belongs{untagged}"
            if len(own) > unnamed
            else f"name the pictures under 'image' or 'images', or remove {PLACEHOLDER}",
        )
    left = iter(own)
    return [reference or next(left) for reference in references]


def _found(reference: Reference, row: Row, folder: ImageFolder) -> Picture:
    return folder.find(reference, row.place) if isinstance(reference, str) else reference.stored()


def _check_order(messages: list[Message], place: str) -> None:
    """Raise unless the turns are: perhaps system, then user and assistant in turn, an answer last, none empty."""
    dialogue = messages[1:] if messages[0].role == "system" else messages
    for number, message in enumerate(dialogue):
        expected = "assistant" if number % 2 else "user"
        if message.role != expected:
            raise DataError(
                f"{place}: turns out of order: {', '.join(message.role for message in messages)}",
                "system (optional), then user, assistant, user, assistant, ...",
                "reorder the turns, or split the sample",
            )
        if not message.text.strip():
            raise DataError(f"{place}: an empty {message.role} turn", "turns with text", "fill or remove it")
    if not dialogue or dialogue[-1].role != "assistant":
        raise DataError(f"{place} has no answer at its end", "an assistant (gpt) turn last", "add the answer")
