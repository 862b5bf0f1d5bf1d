"""One record of a file, with typed access to its fields: another type is an error that names the field. No torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from striate.errors import StriateError
from striate.printable import shown
from striate.storage.read_files import HALF, Form

SCALARS = (str, int, float)


@dataclass(frozen=True)
class Row:
    """One record: `fields` as they were parsed, `place` for errors (file and line, or the like), and its file's form.

    A field that is null counts as absent. Texts of a `published` file are trimmed and may be empty.
    """

    fields: Mapping[str, Any]
    place: str
    form: Form
    published: bool = False

    def __contains__(self, key: str) -> bool:
        return self.fields.get(key) is not None

    def text(self, key: str) -> str:
        """Return the text under `key`; numbers are read as text.

        Raises:
            StriateError: the form's, if it is absent, blank, or something else.
        """
        return self._text(self._value(key, "some text"), key, f"{key!r} with some text")

    def texts(self, key: str) -> tuple[str, ...]:
        """Return the list of texts under `key`, one or more; raises as `text`."""
        values = self._list(key, "a list of texts")
        return tuple(self._text(value, key, f"{key!r} with a list of texts") for value in values)

    def whole(self, key: str) -> int:
        """Return the whole number (from 0) under `key`; raises as `text`."""
        value = self._value(key, "a whole number from 0")
        if type(value) is not int or value < 0:
            raise self._wrong(key, value, "a whole number from 0")
        return value

    def number(self, key: str, least: float = -math.inf) -> float:
        """Return the finite number under `key`, at least `least`; raises as `text`."""
        wanted = "a number" if least == -math.inf else f"a number from {least:g}"
        return self._number(self._value(key, wanted), key, wanted, least)

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """Return the list of `count` finite numbers under `key`; raises as `text`."""
        wanted = f"a list of {count} numbers"
        values = self._list(key, wanted)
        if len(values) != count:
            raise self._wrong(key, values, wanted)
        return tuple(self._number(value, key, wanted, -math.inf) for value in values)

    def row(self, key: str) -> Row:
        """Return the record under `key`; raises as `text`."""
        return self._inner(self._value(key, "an object"), key)

    def rows(self, key: str) -> list[Row]:
        """Return the list of records under `key`, which may be empty; raises as `text`."""
        value = self._value(key, "a list of objects")
        if not isinstance(value, list):
            raise self._wrong(key, value, "a list of objects")
        return [self._inner(part, f"{key}[{index}]") for index, part in enumerate(value)]

    def members(self) -> Iterator[tuple[str, Row]]:
        """Yield every key with the record under it; raises as `text`."""
        for key in self.fields:
            yield key, self._inner(self.fields[key], key)

    def require(self, *keys: str) -> None:
        """Raise for all of `keys` that are absent, in one error; a key that was meant is named.

        Raises:
            StriateError: the form's, if any is.
        """
        missing = [key for key in keys if key not in self]
        if missing:
            names = listed(missing)
            have = ", ".join(shown(key, 30) for key in list(self.fields)[:12] if key in self)
            raise self.refuse(
                f"{names} {'is' if len(missing) == 1 else 'are'} missing", f"a row with {names}; it has {have}"
            )

    def one_of(self, keys: Sequence[str]) -> str:
        """Return which of `keys`, which mean the same, the record has; empty if none, or if several that agree.

        Raises:
            StriateError: the form's, if several of them hold different values.
        """
        there = [key for key in keys if key in self]
        if len(there) > 1 and len({repr(as_list(self.fields[key])) for key in there}) > 1:
            names = " and ".join(map(repr, there))
            raise self.refuse(f"{names} name different things", f"one of {' and '.join(map(repr, keys))}")
        return there[0] if there else ""

    def refuse(self, what: str, allowed: str = "", next_step: str = "") -> StriateError:
        """Return the error that says `what` of this record; left out, the rest is the form's."""
        return self.form.error(f"{self.place}: {what}", allowed or self.form.allowed, next_step or self.form.next_step)

    def at(self, place: str) -> Row:
        """Return the record under another name."""
        # Done for every turn of every sample, where dataclasses.replace would take most of the time.
        return Row(self.fields, place, self.form, self.published)

    def having(self, key: str, value: Any) -> Row:
        """Return the record with another field."""
        return replace(self, fields={**self.fields, key: value})

    def _value(self, key: str, wanted: str) -> Any:
        value = self.fields.get(key)
        if value is None:
            raise self.refuse(f"{key!r} is missing", f"{key!r} with {wanted}")
        return value

    def _list(self, key: str, wanted: str) -> Collection[Any]:
        value = self._value(key, wanted)
        if not isinstance(value, list | tuple) or not value:
            raise self._wrong(key, value, wanted)
        return value

    def _text(self, value: Any, key: str, wanted: str) -> str:
        if (
            not isinstance(value, SCALARS)
            or isinstance(value, bool)
            or (isinstance(value, float) and not math.isfinite(value))
        ):
            raise self.refuse(f"{key!r} is {shown(value)}", wanted)
        try:
            text = str(value).strip() if self.published else str(value)
        except ValueError as error:
            raise self.refuse(f"{key!r} is {shown(value)}", wanted) from error
        if HALF.search(text) or not (self.published or text.strip()):
            raise self.refuse(f"{key!r} is {shown(text)}", wanted)
        return text

    def _number(self, value: Any, key: str, wanted: str, least: float) -> float:
        if type(value) not in (int, float) or not least <= value < math.inf or abs(value) > 1e300:
            raise self._wrong(key, value, wanted)
        return float(value)

    def _inner(self, value: Any, key: str) -> Row:
        if not isinstance(value, Mapping):
            raise self.refuse(f"{key} is {shown(value)}", "an object")
        return replace(self, fields=value, place=f"{self.place}, {shown(key).strip(chr(39))}")

    def _wrong(self, key: str, value: Any, wanted: str) -> StriateError:
        return self.refuse(f"{key!r} is {shown(value)}", f"{key!r} with {wanted}")


def listed(keys: Sequence[str]) -> str:
    """Return `keys`, one or more, in words: `'a', 'b' and 'c'`."""
    return " and ".join(filter(None, (", ".join(map(repr, keys[:-1])), repr(keys[-1]))))


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, and any other value as a list of it."""
    return value if isinstance(value, list) else [value]
