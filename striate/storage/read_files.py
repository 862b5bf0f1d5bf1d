"""The one way in which striate reads a text, JSON, JSON lines or YAML file: every fault of it is an error by name."""

from __future__ import annotations

import codecs
import json
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from striate.errors import ConfigError, StriateError
from striate.printable import shown

MOST_VALUES = 100_000
_UTF16_OR_32 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
_HALF_ESCAPED = re.compile(r"\\(?:u|U0000)[dD][89a-fA-F]")
HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Form:
    """A kind of file, for errors: their class, its content, what to do (empty: mend or copy it); and its size."""

    error: type[StriateError]
    allowed: str
    next_step: str = ""
    most_bytes: int = 4 * 2**30

    def refuse(self, given: str, next_step: str = "") -> StriateError:
        """Return the error that says `given`; `next_step` is for faults that have a remedy of their own."""
        return self.error(given, self.allowed, next_step or self.next_step or "mend the file, or copy it again")


def user_path(text: str | Path) -> Path:
    """Return the path that a person wrote, with `~` read as a home folder.

    Raises:
        ConfigError: it names the home of a user who doesn't exist, or holds a NUL character.
    """
    try:
        if "\0" in str(text):
            raise RuntimeError("a path with a NUL character")
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"no such place: {shown(str(text))}: {error}", "a path, or one that starts with ~/", "check the path"
        ) from error


def read_bytes(file: Path, form: Form) -> bytes:
    """Return the bytes of `file`.

    Raises:
        StriateError: `form`'s, if the file is missing, may not be read, is too large, or is a pipe or a device, which
            may have no end.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise form.refuse(f"can't read {file}: it is a pipe or a device, and no file", "save its content as a file")
        if status.st_size > form.most_bytes:
            size = f"it has {status.st_size} bytes, and {form.most_bytes} is the most"
            raise form.refuse(f"can't read {file}: {size}", "check what it is")
        return file.read_bytes()
    except OSError as error:
        raise form.refuse(
            f"can't read {file}: {error.strerror or error}", form.next_step or "check the path"
        ) from error
    except ValueError as error:
        raise form.refuse(f"can't read {shown(str(file))}: {error}", "check the path") from error


def read_text(file: Path, form: Form) -> str:
    """Return the text of `file`, which is UTF-8; a byte order mark is left out.

    Raises:
        StriateError: `form`'s, if the file can't be read or is written in something else.
    """
    content = read_bytes(file, form)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refuse_utf8(file, form, error.start, content) from error


def read_json(file: Path, form: Form) -> Any:
    """Return the JSON value in `file`; raises as `read_text` and `parse_json`."""
    return parse_json(read_text(file, form), str(file), form)


def read_object(file: Path, form: Form) -> dict[str, Any]:
    """Return the JSON object in `file`; raises as `read_json`, and for any other value."""
    return as_object(read_json(file, form), str(file), form)


def json_lines(file: Path, form: Form) -> Iterator[tuple[int, Any]]:
    """Yield the number (from 1) and the value of every line of `file` that is not blank; raises as `read_json`."""
    for number, line in enumerate(read_text(file, form).split("\n"), start=1):
        if line.strip():
            yield number, parse_json(line, f"{file}:{number}", form, line=number)


def read_yaml(file: Path, form: Form) -> Any:
    """Return the YAML value in `file`; raises as `read_text` and `parse_yaml`."""
    return parse_yaml(read_text(file, form), str(file), form)


def as_object(value: Any, place: str, form: Form) -> dict[str, Any]:
    """Return `value`, which must be a mapping; `place` names it in the error."""
    if isinstance(value, dict):
        return value
    kind = "nothing" if value is None else f"{type(value).__name__}, not an object"
    raise form.refuse(f"{place} holds {kind}")


def parse_json(text: str, place: str, form: Form, line: int = 1) -> Any:
    """Return the JSON value of `text`, which starts on `line` of its file.

    Raises:
        StriateError: `form`'s, if it is no JSON, just stops, is nested too deep, holds a number of too many digits or
            half of a surrogate pair, which no encoding can write.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refuse_json(text, error, place, form, line) from error
    return whole_characters(value, text, place, form)


def parse_yaml(text: str, place: str, form: Form) -> Any:
    """Return the YAML value of `text`.

    Raises:
        StriateError: `form`'s, if it is no YAML, or names a date, number or text that doesn't exist.
    """
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None and _expanded(node, {}) > MOST_VALUES:
            raise ValueError(f"its anchors and aliases stand for more than {MOST_VALUES} values")
        value = loader.construct_document(node) if node is not None else None
    except MemoryError:
        raise
    except Exception as error:  # PyYAML's own constructors raise ten kinds, for example for 2024-02-30.
        raise form.refuse(f"{place} is not YAML: {_limit(error)}") from error
    return whole_characters(value, text, place, form)


def _expanded(node: Any, known: dict[int, int]) -> int:
    """Return how many values a node of YAML stands for, an alias as many as its anchor."""
    if isinstance(node.value, str):
        return 1
    if id(node) not in known:
        # Meanwhile it counts as too many: one that holds itself has no end.
        known[id(node)] = MOST_VALUES + 1
        parts = [part for row in node.value for part in (row if isinstance(row, tuple) else (row,))]
        known[id(node)] = 1 + sum(_expanded(part, known) for part in parts)
    return known[id(node)]


def _limit(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    # The rest of Python's own text tells how to raise its limit.
    return " ".join(str(error).split(";")[0].split()) or type(error).__name__


def refuse_utf8(file: Path, form: Form, place: int, start: bytes) -> StriateError:
    """Return the error for a file that is not UTF-8 at byte `place`; `start` are its first bytes."""
    hint = " (it looks like UTF-16)" if start.startswith(_UTF16_OR_32) else ""
    return form.refuse(f"{file} is not UTF-8 text: byte {place}{hint}", "save it as UTF-8")


def refuse_json(text: str, error: Exception, place: str, form: Form, line: int) -> StriateError:
    """Return the error for `text`, which starts on `line` of its file, and of which `error` says why it is no JSON."""
    if not isinstance(error, json.JSONDecodeError):
        return form.refuse(f"{place} is not JSON that can be read: {_limit(error)}")
    number = line + error.lineno - 1
    stops = bool(text.strip()) and (error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"))
    problem = "the text stops in the middle (a truncated file?)" if stops else error.msg
    next_step = "copy or write the file again, whole" if stops else f"fix line {number}"
    where = "" if place.endswith(f":{number}") else f"line {number}: "
    return form.refuse(f"{place} is not JSON: {where}{problem}", form.next_step or next_step)


def whole_characters(value: Any, text: str, place: str, form: Form) -> Any:
    """Return `value`, read from `text`; raise if a text in it holds half of a surrogate pair, which no file can."""
    for where, part in _texts_in(value) if _HALF_ESCAPED.search(text) else ():
        if half := HALF.search(part):
            raise form.refuse(
                f"{place}: {where}: character {half.start() + 1} is half of a surrogate pair, {shown(half[0])}",
                "write whole characters: the text was cut in the middle of one",
            )
    return value


def _texts_in(value: Any) -> Iterator[tuple[str, str]]:
    """Yield every text in `value` with the way to it, such as `5 (id 'a').conversations.1.value`."""
    left: list[tuple[str, Any]] = [("", value)]
    seen: set[int] = set()
    while left:
        where, part = left.pop()
        if isinstance(part, str):
            yield where or "its text", part
        elif isinstance(part, dict | list) and id(part) not in seen:
            seen.add(id(part))
            named = f"{where} (id {shown(part['id'])})" if isinstance(part, dict) and "id" in part else where
            pairs = part.items() if isinstance(part, dict) else enumerate(part)
            left += [(f"{named}.{key}".lstrip("."), inner) for key, inner in pairs]
            left += [(f"a key of {named or 'it'}", key) for key in part if isinstance(part, dict)]
