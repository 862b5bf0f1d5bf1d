"""JSON lists and lines that are read a value at a time: as json.loads reads them, whatever is read at once."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from striate.errors import DataError
from striate.storage import json_stream
from striate.storage.json_stream import NotAListError, streamed_items, streamed_lines
from striate.storage.read_files import Form, parse_json

FORM = Form(DataError, "a list")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=list(HealthCheck), max_examples=60)
@given(values=st.lists(VALUES, max_size=6), indent=st.sampled_from((None, 0, 3)), ascii_only=st.booleans(),
       chunk=st.integers(1, 9), mark=st.booleans())  # fmt: skip
def test_lists(values: list[Any], indent: int | None, ascii_only: bool, chunk: int, mark: bool, tmp_path: Path) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    (tmp_path / "a.json").write_text(f"\n {text} \n", encoding="utf-8-sig" if mark else "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_CHUNK", chunk)
        assert list(streamed_items(tmp_path / "a.json", FORM)) == values


def error_of(text: str | bytes, folder: Path, chunk: int) -> str:
    """The first line of the error for a list, read in pieces."""
    file = folder / "a.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_CHUNK", chunk)
        with pytest.raises(DataError) as caught:
            list(streamed_items(file, FORM))
    return str(caught.value).split("\n")[0]


BROKEN = (
    '[{"id": 1},\n {"id": 2', '[{"id": "abc', '[\n{"id": nope}\n]', "[1,\n2\n3]", "[1,\n,2]", "[1,]", "[1] x",
    "[1]\n]", "[", "[1", "[1,", '["a\nb"]', "[{1: 2}]", "[1, 2\n", "[" + "[" * 3000, f"[{'9' * 5000}]",
)  # fmt: skip


@pytest.mark.parametrize("chunk", [1, 3, 2**20])
@pytest.mark.parametrize("text", BROKEN)
def test_broken_lists_are_refused_as_a_whole_text_is(text: str, chunk: int, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        parse_json(text, str(tmp_path / "a.json"), FORM)
    whole, streamed = str(caught.value).split("\n")[0], error_of(text, tmp_path, chunk)
    # At an end that is not there, other characters were expected; the line and the rest are the same.
    assert streamed == whole or ("stops in the middle" in streamed and "stops" in whole)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    for chunk in (1, 4, 100):
        assert "is not UTF-8 text: byte 7" in error_of(b'["\xc3\xa9bcd\xff"]', tmp_path, chunk)
    assert "looks like UTF-16" in error_of('["a"]'.encode("utf-16"), tmp_path, 100)
    assert "half of a surrogate pair" in error_of('["\\ud800"]', tmp_path, 100)


def test_what_is_no_list(tmp_path: Path) -> None:
    for text in ("", "  ", '{"a": 1}', "3"):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(NotAListError):
            list(streamed_items(tmp_path / "a.json", FORM))


def test_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('\ufeff{"a": 1}\r\n\n  \n[2]\n"é\u2028x"'.encode())
    assert list(streamed_lines(tmp_path / "a.jsonl", FORM)) == [(1, {"a": 1}), (4, [2]), (5, "é\u2028x")]
    (tmp_path / "a.jsonl").write_bytes(b"1\n2\n\xff\n")
    with pytest.raises(DataError, match="byte 4"):
        list(streamed_lines(tmp_path / "a.jsonl", FORM))
    with pytest.raises(DataError, match="No such file"):
        list(streamed_lines(tmp_path / "none.jsonl", FORM))


@pytest.mark.parametrize(("read", "before", "between"), [(streamed_items, "[", ","), (streamed_lines, "", "\n")])
def test_little_is_in_memory(read: Any, before: str, between: str, tmp_path: Path) -> None:
    row = json.dumps({"text": "x" * 10_000})
    (tmp_path / "a").write_text(before + between.join([row] * 2000) + ("]" if before else ""))
    tracemalloc.start()
    assert sum(1 for _ in read(tmp_path / "a", FORM)) == 2000
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 6 * 2**20
