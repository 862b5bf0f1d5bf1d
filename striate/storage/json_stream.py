"""Reads JSON files a value at a time, so that a list or lines of gigabytes take little memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from striate.storage.read_files import Form, parse_json, refuse_json, refuse_utf8, whole_characters

_CHUNK = 2**20
_SPACE = " \t\n\r"
_DECODER = json.JSONDecoder()
_AFTER = re.compile(r"[ \t\n\r]*[,\]]")


def streamed_lines(file: Path, form: Form) -> Iterator[tuple[int, Any]]:
    """Yield the number (from 1) and the value of every line of `file` that is not blank.

    Raises:
        StriateError: `form`'s, if the file can't be read, is not UTF-8, or a line is no JSON; see `parse_json`.
    """
    read = 0
    with _opened(file, form) as stream:
        for number, raw in enumerate(stream, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise refuse_utf8(file, form, read + error.start, raw) from error
            read += len(raw)
            if line.strip():
                yield number, parse_json(line, f"{file}:{number}", form, line=number)


def streamed_items(file: Path, form: Form) -> Iterator[Any]:
    """Yield the values of the JSON list in `file`.

    Raises:
        NotAListError: the file does not begin as a list does.
        StriateError: `form`'s, as `streamed_lines`.
    """
    with _opened(file, form) as stream:
        yield from _Items(file, form, stream).items()


class NotAListError(ValueError):
    """What a file holds is no JSON list."""


class _Items:
    """The text of a JSON list that was read and not yet parsed, and the line on which it begins."""

    def __init__(self, file: Path, form: Form, stream: BinaryIO) -> None:
        self._file, self._form, self._stream = file, form, stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._place, self._line, self._bytes = "", 0, 1, 0
        self._ended = False

    def items(self) -> Iterator[Any]:
        """Yield the list's values."""
        if self._next() != "[":
            raise NotAListError
        self._place += 1
        if self._next() == "]":
            self._place += 1
        else:
            while True:
                yield self._value()
                mark = self._next()
                if mark not in (",", "]"):
                    self._refuse("Expecting ',' delimiter")
                self._place += 1
                if mark == "]":
                    break
        if self._next():
            self._refuse("Extra data")

    def _value(self) -> Any:
        """Return the next value, after reading as much as it takes."""
        if not self._next():
            self._refuse("Expecting value")
        wanted = _CHUNK
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._place)
                # A number at the end of what was read may go on.
                if self._ended or _AFTER.match(self._text, end):
                    break
            except json.JSONDecodeError as error:
                if self._ended:
                    raise refuse_json(self._text, error, str(self._file), self._form, self._line) from error
            except (ValueError, RecursionError) as error:
                raise refuse_json(self._text, error, str(self._file), self._form, self._line) from error
            self._read(wanted)
            wanted *= 2
        text, self._place = self._text[self._place : end], end
        return whole_characters(value, text, str(self._file), self._form)

    def _next(self) -> str:
        """Return the next character that is no space, which becomes the place; empty at the end."""
        while True:
            while self._place < len(self._text):
                if self._text[self._place] not in _SPACE:
                    return self._text[self._place]
                self._place += 1
            if self._ended:
                return ""
            self._read(_CHUNK)

    def _read(self, size: int) -> None:
        """Read on, and forget what was parsed."""
        raw = self._stream.read(size)
        self._ended = len(raw) < size
        pending = len(self._decoder.getstate()[0])
        try:
            more = self._decoder.decode(raw, final=self._ended)
        except UnicodeDecodeError as error:
            raise refuse_utf8(self._file, self._form, self._bytes - pending + error.start, raw) from error
        self._bytes += len(raw)
        self._line += self._text.count("\n", 0, self._place)
        self._text, self._place = self._text[self._place :] + more, 0

    def _refuse(self, problem: str) -> NoReturn:
        text, line, place = self._text, self._line, self._place
        if not self._next():
            # All that is left was parsed: what is missing is the rest.
            text, line, place = "[", self._line + self._text.count("\n"), 1
        error = json.JSONDecodeError(problem, text, place)
        raise refuse_json(text, error, str(self._file), self._form, line)


@contextmanager
def _opened(file: Path, form: Form) -> Iterator[BinaryIO]:
    """Yield the file's bytes; whatever fails in reading them is the form's error."""
    try:
        with file.open("rb") as stream:
            yield stream
    except OSError as error:
        raise form.refuse(
            f"can't read {file}: {error.strerror or error}", form.next_step or "check the path"
        ) from error
