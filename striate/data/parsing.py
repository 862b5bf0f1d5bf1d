"""Parses one raw record into a checked `Sample`; every error says where the record stands and what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from striate.data.picture_names import picture_names, refuse_other_media, refuse_other_names
from striate.data.rows import Row
from striate.data.samples import PLACEHOLDER, Message, Role, Sample
from striate.errors import DataError, did_you_mean
from striate.printable import shown
from striate.storage.inside import inside
from striate.storage.read_files import Form

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
TURNS = ("conversations", "messages")
IMAGES_FOLDER = "images"
SAMPLE = Form(DataError, "a sample with `conversations` (LLaVA) or `messages` (chat)", "fix it")


class ImageFolder:
    """The folder of a data file: finds the pictures that it names and lets none lie outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._found: dict[str, Path] = {}

    def find(self, name: str, place: str) -> Path:
        """Return the path of picture `name`, relative to the folder or to its images/ folder.

        Raises:
            DataError: the picture is missing, or lies outside the folder (`place` says whose it is).
        """
        if name not in self._found:
            self._found[name] = self._look(name, place)
        return self._found[name]

    def _look(self, name: str, place: str) -> Path:
        for parts in ((name,), (IMAGES_FOLDER, name)):
            candidate = inside(self.folder, *parts, what=f"{place}: picture", kind="data folder")
            if candidate.is_file():
                return candidate
        allowed = f"a file inside {self.folder}, named relative to it or to its images/"
        raise DataError(f"{place}: no picture {shown(name)}", allowed, "check the name, or remove the sample")


def parse_sample(record: Any, place: str, default_id: str, folder: ImageFolder) -> Sample:
    """Return the checked sample of one LLaVA or chat record.

    Args:
        record: the parsed JSON value.
        place: file and position, the start of every error.
        default_id: the id of a record that has none.
        folder: where its pictures are looked for.

    Raises:
        DataError: not a mapping, no or bad turns, unknown role, no answer, a video, or pictures and placeholders that
            differ.
    """
    if not isinstance(record, dict):
        raise DataError(f"{place} is a {type(record).__name__}, not a sample", "a JSON object", "fix it")
    row = Row(record, place, SAMPLE)
    sample_id = row.text("id") if record.get("id") not in (None, "") else default_id
    row = row.at(f"{place} (id {shown(sample_id)})")
    names = picture_names(row)
    messages, blocks = _turns(row)
    _check_order(messages, row.place)
    if not names and not any(blocks):
        refuse_other_names(row, TURNS)
    images = _pictures(names, blocks, row)
    paths = tuple(folder.find(image, row.place) for image in images)
    return Sample(sample_id, tuple(messages), paths, row.text("task") if record.get("task") not in (None, "") else "")


def _turns(row: Row) -> tuple[list[Message], list[str]]:
    """Return the record's turns, and for each placeholder the picture that its content block names, or nothing."""
    keys = [key for key in TURNS if key in row]
    if len(keys) != 1:
        given = "both `conversations` and `messages`" if keys else "neither `conversations` nor `messages`"
        raise row.refuse(f"it has {given}", "one of the two", "see docs/data.md")
    turns = row.fields[keys[0]]
    if not isinstance(turns, list) or not turns:
        raise row.refuse(f"`{keys[0]}` is not a list of turns", "a list with a question and an answer")
    names = ("from", "value") if keys[0] == "conversations" else ("role", "content")
    messages: list[Message] = []
    pictures: list[str] = []
    for number, turn in enumerate(turns):
        messages.append(_turn(turn, names, pictures, row.at(f"{row.place}, turn {number}")))
    return messages, pictures


def _turn(turn: Any, names: tuple[str, str], pictures: list[str], row: Row) -> Message:
    """Return one turn, adding to `pictures` what its placeholders name; `row` is for errors."""
    speaker, content = names
    if not isinstance(turn, dict) or turn.get(speaker) is None or turn.get(content) is None:
        raise row.refuse(
            f"it lacks {speaker!r} or {content!r}", f"an object with {speaker!r} and {content!r}", "add it"
        )
    role = ROLES.get(turn[speaker]) if isinstance(turn[speaker], str) else None
    if role is None:
        hint = did_you_mean(str(turn[speaker]), ROLES) if isinstance(turn[speaker], str) else ""
        raise row.refuse(f"unknown role {shown(turn[speaker])}", ", ".join(ROLES), f"{hint}rename it")
    before = len(pictures)
    message = Message(role, _text(turn[content], pictures, row))
    if message.images != len(pictures) - before:
        raise row.refuse(f"{PLACEHOLDER} is cut between two blocks", "each placeholder within one block")
    if message.images and role != "user":
        raise row.refuse(f"{PLACEHOLDER} in a turn of {role}", "pictures in user turns", "move it")
    if role == "user":
        refuse_other_media(row, message.text)
    return message


def _text(content: Any, pictures: list[str], row: Row) -> str:
    blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
    if not isinstance(content, str | list):
        raise row.refuse(f"its content is a {type(content).__name__}", "text, or a list of blocks")
    return "".join(_block(block, pictures, row) for block in blocks)


def _block(block: Any, pictures: list[str], row: Row) -> str:
    """Return one content block as text, adding to `pictures` what each placeholder in it names."""
    kind = block.get("type") if isinstance(block, dict) else None
    if kind == "text" and isinstance(block.get("text"), str):
        pictures += [""] * block["text"].count(PLACEHOLDER)
        return str(block["text"])
    if kind == "image":
        inner = Row(block, row.place, row.form)
        key = inner.one_of(("image", "path", "url"))
        pictures.append(inner.text(key) if key else "")
        return PLACEHOLDER
    raise row.refuse(
        f"can't use content block {shown(block)}", 'blocks {"type": "text", "text": ...} and {"type": "image"}'
    )


def _pictures(names: list[str], placeholders: list[str], row: Row) -> list[str]:
    """Return one picture for every placeholder: its block's own, or else the next of the record's."""
    unnamed = placeholders.count("")
    if names == placeholders:
        return names
    if unnamed != len(names):
        raise row.refuse(
            f"it has {len(placeholders)} {PLACEHOLDER} placeholders and "
            f"{len(names) + len(placeholders) - unnamed} pictures",
            "one placeholder for every picture, in order",
            f"add {PLACEHOLDER} to the question, or name the pictures under `image`",
        )
    left = iter(names)
    return [name or next(left) for name in placeholders]


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
