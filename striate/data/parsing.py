"""Parses one raw record into a checked `Sample`; every error says where the record stands and what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from striate.data.samples import PLACEHOLDER, Message, Role, Sample
from striate.errors import DataError, did_you_mean

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


class ImageFolder:
    """The folder of a data file: finds the pictures that it names and lets none lie outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._real = folder.resolve()
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
        inside = f"a path inside {self.folder}, relative to it or to {self.folder / 'images'}"
        for candidate in (self.folder / name, self.folder / "images" / name):
            if not candidate.resolve().is_relative_to(self._real):
                raise DataError(f"{place}: picture {name!r} leaves the data folder", inside, "copy it into the folder")
            if candidate.is_file():
                return candidate
        raise DataError(f"{place}: no picture {name!r}", inside, "check the name, or remove the sample")


def parse_sample(record: Any, place: str, default_id: str, folder: ImageFolder) -> Sample:
    """Return the checked sample of one LLaVA or chat record.

    Args:
        record: the parsed JSON value.
        place: file and position, the start of every error.
        default_id: the id of a record that has none.
        folder: where its pictures are looked for.

    Raises:
        DataError: not a mapping, no or bad turns, unknown role, no answer, or pictures and placeholders that differ.
    """
    if not isinstance(record, dict):
        raise DataError(f"{place} is a {type(record).__name__}, not a sample", "a JSON object", "fix it")
    name = str(record.get("id", default_id))
    place = f"{place} (id {name!r})"
    messages, named = _turns(record, place)
    _check_order(messages, place)
    images = [*_image_list(record, place), *named]
    _check_placeholders(messages, images, place)
    paths = tuple(folder.find(image, place) for image in images)
    return Sample(name, tuple(messages), paths, str(record.get("task", "")))


def _turns(record: dict[str, Any], place: str) -> tuple[list[Message], list[str]]:
    """Return the record's turns, and the pictures that their content blocks name."""
    keys = [key for key in ("conversations", "messages") if key in record]
    if len(keys) != 1:
        given = "both `conversations` and `messages`" if keys else "neither `conversations` nor `messages`"
        raise DataError(f"{place} has {given}", "one of the two", "see docs/data.md")
    turns = record[keys[0]]
    if not isinstance(turns, list) or not turns:
        raise DataError(
            f"{place}: `{keys[0]}` is not a list of turns", "a list with a question and an answer", "fix it"
        )
    names = ("from", "value") if keys[0] == "conversations" else ("role", "content")
    messages: list[Message] = []
    named: list[str] = []
    for number, turn in enumerate(turns):
        messages.append(_turn(turn, names, named, f"{place}, turn {number}"))
    return messages, named


def _turn(turn: Any, names: tuple[str, str], named: list[str], place: str) -> Message:
    """Return one turn, adding to `named` the pictures that its blocks name."""
    speaker, content = names
    if not isinstance(turn, dict) or speaker not in turn or content not in turn:
        raise DataError(
            f"{place} lacks {speaker!r} or {content!r}", f"an object with {speaker!r} and {content!r}", "add it"
        )
    role = ROLES.get(str(turn[speaker]))
    if role is None:
        hint = did_you_mean(str(turn[speaker]), ROLES)
        raise DataError(f"{place}: unknown role {turn[speaker]!r}", ", ".join(ROLES), f"{hint}rename it")
    return Message(role, _text(turn[content], named, place))


def _text(content: Any, named: list[str], place: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DataError(f"{place}: its content is a {type(content).__name__}", "text, or a list of blocks", "fix it")
    return "".join(_block(block, named, place) for block in content)


def _block(block: Any, named: list[str], place: str) -> str:
    """Return one content block as text, adding to `named` the picture that it names."""
    kind = block.get("type") if isinstance(block, dict) else None
    if kind == "text" and isinstance(block.get("text"), str):
        return block["text"]
    if kind == "image":
        named.extend(str(block[key]) for key in ("image", "path", "url") if block.get(key))
        return PLACEHOLDER
    raise DataError(
        f"{place}: can't use content block {block!r:.80}",
        'blocks {"type": "text", "text": ...} and {"type": "image"}',
        "fix it",
    )


def _image_list(record: dict[str, Any], place: str) -> list[str]:
    value = record.get("image", record.get("images"))
    if value is None:
        return []
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{place}: `image` is {value!r:.80}", "a file name or a list of file names", "fix it")
    return names


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


def _check_placeholders(messages: list[Message], images: list[str], place: str) -> None:
    for message in messages:
        if message.images and message.role != "user":
            raise DataError(f"{place}: {PLACEHOLDER} in a turn of {message.role}", "pictures in user turns", "move it")
    count = sum(message.images for message in messages)
    if count != len(images):
        raise DataError(
            f"{place} has {count} {PLACEHOLDER} placeholders and {len(images)} pictures",
            "one placeholder for every picture, in order",
            f"add {PLACEHOLDER} to the question, or name the pictures under `image`",
        )
