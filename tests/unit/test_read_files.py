"""Every text, JSON and YAML file: what is wrong with it is said by name, in the words of the one reading function."""

import json
import os
import string
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from striate.errors import ArtifactError, ConfigError, StriateError
from striate.printable import clipped, printable, shown
from striate.storage.read_files import (
    Form,
    json_lines,
    read_bytes,
    read_json,
    read_object,
    read_text,
    read_yaml,
    user_path,
)

FORM = Form(ArtifactError, "what is allowed")
BAD_JSON = {
    "half an emoji": (rb'[{"id": "7", "a": ["", "an apple \ud83c"]}]', "0 (id '7').a.1: character 10 is half of"),
    "half an emoji in a key": (rb'{"x": {"\udc00": 1}}', "a key of x: character 1 is half of a surrogate pair"),
    "nested 100,000 deep": (b"[" * 100_000, "it is nested too deep"),
    "nested, and whole": (b"[" * 100_000 + b"]" * 100_000, "it is nested too deep"),
    "a number of 5,000 digits": (b"9" * 5000, "Exceeds the limit (4300 digits)"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "is not UTF-8 text: byte 0 (it looks like UTF-16)"),
    "bytes that are no UTF-8": (b'{"a": "\xe9"}', "is not UTF-8 text: byte 7"),
    "nothing": (b"", "line 1: Expecting value"),
    "cut short": (b'{"a": [1, 2', "line 1: the text stops in the middle (a truncated file?)"),
}
BAD_YAML = {
    "a date that does not exist": (b"date: 2024-02-30", "day is out of range for month"),
    "a tag of another kind": (b"a: !!bool maybe", "is not YAML"),
    "a tag that no one made": (b"a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "a number of 5,000 digits": (b"a: " + b"9" * 5000, "Exceeds the limit (4300 digits)"),
    "nested 100,000 deep": (b"[" * 100_000, "it is nested too deep"),
    "half an emoji": (rb'a: ["b", "\ud83c"]', "a.1: character 1 is half of a surrogate pair"),
    "half an emoji in eight digits": (rb'a: "\U0000d83c"', "a: character 1 is half of a surrogate pair"),
    "UTF-16": ("a: 1".encode("utf-16"), "(it looks like UTF-16)"),
    "a control character": (b"a: \x1b[31m", "special characters are not allowed"),
}


def refusal(path: Path, read: object) -> str:
    with pytest.raises(ArtifactError) as caught:
        read(path, FORM)  # type: ignore[operator]
    lines = str(caught.value).split("\n")
    assert len(lines[0]) <= 300
    assert lines[1] == "  allowed: what is allowed"
    assert lines[2].startswith("  next: ")
    return lines[0]


@pytest.mark.parametrize("case", BAD_JSON)
def test_bad_json_is_named(tmp_path: Path, case: str) -> None:
    content, what = BAD_JSON[case]
    (tmp_path / "a.json").write_bytes(content)
    said = refusal(tmp_path / "a.json", read_json)
    assert "a.json" in said
    assert what in said


@pytest.mark.parametrize("case", BAD_YAML)
def test_bad_yaml_is_named(tmp_path: Path, case: str) -> None:
    content, what = BAD_YAML[case]
    (tmp_path / "a.yaml").write_bytes(content)
    said = refusal(tmp_path / "a.yaml", read_yaml)
    assert "a.yaml" in said
    assert what in said


def test_lines_are_named_by_number(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": "\u2028"}\n\n{"a": "\\ud83c"}\n')
    rows = json_lines(tmp_path / "a.jsonl", FORM)
    assert next(rows) == (1, {"a": "\u2028"})
    with pytest.raises(ArtifactError, match=r"a\.jsonl:3: a: character 1 is half of a surrogate pair"):
        next(rows)


def test_a_byte_order_mark_and_whole_pairs_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": "\U0001f34e"}).encode())
    assert read_object(tmp_path / "a.json", FORM) == {"a": "\U0001f34e"}
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_yaml(tmp_path / "a.yaml", FORM) == {"a": 1}


def test_names_that_are_no_names(tmp_path: Path) -> None:
    assert "File name too long" in refusal(tmp_path / ("a" * 5000), read_text)
    assert "null byte" in refusal(tmp_path / "a\0", read_text)
    assert "Is a directory" in refusal(tmp_path, read_text)
    for place in ("~nobody-of-that-name/x", "a\0b"):
        with pytest.raises(ConfigError, match="no such place: "):
            user_path(place)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.binary(max_size=40) | st.text(string.printable, max_size=40).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "any").write_bytes(content)
    for read in (read_json, read_yaml, read_object, lambda path, form: list(json_lines(path, form))):
        with suppress(StriateError):
            read(tmp_path / "any", FORM)


@given(st.text(st.characters(codec=None), max_size=60))
def test_what_is_printable_holds_nothing_that_a_terminal_obeys(text: str) -> None:
    safe = printable(text)
    assert safe == printable(safe)
    assert not set(safe) & set("\x1b\x9b\r\x07\x08\x7f\u202e\u2066\u2028\ud83c")
    safe.encode("utf-8")
    assert str(ConfigError(text)) == safe


def test_long_values_are_shortened() -> None:
    assert clipped("a" * 400, 10) == "aaaaaa…aaa"
    assert shown("data:" + "x" * 10_000) == "'data:" + "x" * 47 + "…" + "x" * 25 + "'"
    assert len(shown({"a": ["b" * 900] * 900})) <= 80
    assert shown(16**5000) == "a very large int"
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert len(shown(deep)) <= 80
    spec = f"region {'ids:' + '1,' * 400!r} has layers twice: {[1] * 400}"
    assert clipped(spec).startswith(f"region 'ids:{'1,' * 10}")
    assert " has layers twice: [1, 1" in clipped(spec)
    lines = str(ConfigError("\n".join(f"{n}: {'x' * 999}" for n in range(99)))).split("\n")
    assert len(lines) == 31
    assert max(map(len, lines)) <= 300


NINE_TIMES = [(", ".join([f"*{old}"] * 9), new) for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
ALIASES = {
    "of lists": "a: &a [x, x]\n" + "".join(f"{new}: &{new} [{old}]\n" for old, new in NINE_TIMES),
    "of merged mappings": "a: &a {x: 1}\n" + "".join(f"{new}: &{new} {{<<: [{old}]}}\n" for old, new in NINE_TIMES),
    "of itself": "a: &a [*a]\n",
    "of keys": "? &a [x]\n: *a\nb: &b {c: *b}\n",
}


@pytest.mark.parametrize("kind", ALIASES)
def test_aliases_that_stand_for_too_much_are_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(ALIASES[kind])
    with pytest.raises(ArtifactError, match=r"its anchors and aliases stand for more than 100000 values"):
        read_yaml(tmp_path / "a.yaml", FORM)


def test_anchors_in_reason_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a {x: 1}\nb: {<<: *a, y: [*a, *a]}\n")
    assert read_yaml(tmp_path / "a.yaml", FORM) == {"a": {"x": 1}, "b": {"x": 1, "y": [{"x": 1}, {"x": 1}]}}


@pytest.mark.parametrize("read", [read_bytes, read_text, read_json, read_yaml], ids=lambda read: read.__name__)
def test_pipes_devices_and_endless_files_are_refused(read: Callable[[Path, Form], Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    pipe = "it is a pipe or a device"
    for name, reason in (("pipe", pipe), ("zero", pipe), ("sparse", "it has 1099511627776 bytes")):
        with pytest.raises(ArtifactError, match=rf"can't read .*{name}: .*{reason}"):
            read(tmp_path / name, FORM)
    with pytest.raises(ArtifactError, match="Is a directory"):
        read(tmp_path, FORM)
