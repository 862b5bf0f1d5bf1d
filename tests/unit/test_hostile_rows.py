"""Whatever stands in a benchmark's, a pack's or a training file: it is read, or refused by file, row and field.

One field of a good file is taken out or replaced by another value, or bytes of the file are; only errors of striate
come out. `-m attack` tries every field with every value.
"""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from published_kit import BUILDERS, picture

from striate.data.reading import read_samples
from striate.errors import StriateError
from striate.printable import printable
from striate.tasks.packs.reader import read_pack
from striate.tasks.packs.sources import parse_source, read_source

ABSENT = object()
DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
HOSTILE: tuple[Any, ...] = (
    *(ABSENT, None, True, False, 0, 1, -1, 10**30, 10**400, 0.5, 1e308, float("nan"), float("inf"), -float("inf")),
    *("", " ", "A", "Z", "yes", "<image>", "<image 9>", "../../x", "/etc/passwd", "a\0b", "\u202ex\x1b[2J", "9" * 5000),
    *(
        "x" * 300_000,
        "[1, {[]: 2}]",
        "[" * 400,
        "nan",
        "-1",
        "١",
        [],
        {},
        [[]],
        [None],
        [1, 2],
        ["a", {}],
        {"a": []},
        DEEP,
    ),
    *([float("nan")] * 4, [0, 0, 0, 0], [1e308] * 4, [""] * 10, [10**400] * 4, {"bytes": "x"}, [{"answer": None}]),
)
# Of a few characters: a table of all of them takes seconds to make.
TEXT = st.text("aA1 \n\t\0\x1b\x9b\u202e\u2028é漢\U0001f600\ud800\"',;{}[]<>/\\%", max_size=8)
ANYTHING = st.one_of(
    st.sampled_from(HOSTILE),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=6,
    ),
)
QUICK = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
Keys = tuple[Any, ...]


def places(value: Any, keys: Keys = ()) -> Iterator[Keys]:
    """Yield the way to every part of a JSON value."""
    yield keys
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*keys, key))


def changed(value: Any, keys: Keys, new: Any) -> Any:
    """Return a copy of a JSON value with its part at `keys` replaced, or taken out."""
    if not keys:
        return None if new is ABSENT else new
    copy = value.copy()
    if len(keys) == 1 and new is ABSENT:
        del copy[keys[0]]
    else:
        copy[keys[0]] = changed(value[keys[0]], keys[1:], new)
    return copy


class Target:
    """One file that is read: as a value that can be changed and written again, and a function that reads all."""

    def __init__(self, file: Path, read: Callable[[], Any]) -> None:
        self.file, self.read = file, read
        self.bytes = file.read_bytes()
        self.value = self._parsed()
        self.places = list(places(self.value))

    def _parsed(self) -> Any:
        if self.file.suffix == ".p":
            return pickle.loads(self.bytes)
        if self.file.suffix == ".json" and not self.bytes.count(b"\n") > 1:
            return json.loads(self.bytes)
        if self.file.suffix in (".json", ".jsonl"):
            return [json.loads(line) for line in self.bytes.decode().splitlines()]
        return [line.split(self._comma) for line in self.bytes.decode().splitlines()]

    @property
    def _comma(self) -> str:
        return {".csv": ",", ".tsv": "\t", ".txt": "\t"}[self.file.suffix]

    def _written(self, value: Any) -> bytes:
        if self.file.suffix == ".p":
            return pickle.dumps(value)
        if self.file.suffix == ".json" and not self.bytes.count(b"\n") > 1:
            return json.dumps(value).encode()
        rows = value if isinstance(value, list) else [value]
        if self.file.suffix in (".json", ".jsonl"):
            return "\n".join(map(json.dumps, rows)).encode()
        lines = (self._comma.join(map(str, row)) if isinstance(row, list) else str(row) for row in rows)
        return "\n".join(lines).encode("utf-8", "replace")

    def holds(self, content: bytes) -> None:
        """Check that the file with `content` is read, or refused in clear words."""
        self.file.write_bytes(content)
        try:
            self.read()
        except StriateError as error:
            self.is_clear(str(error))
        finally:
            self.file.write_bytes(self.bytes)

    def is_clear(self, message: str) -> None:
        lines = message.split("\n")
        assert lines[-1].startswith("  next:    "), message
        assert all(len(line) < 1600 for line in lines)
        names = (self.file.name, "question '", "no picture", "no question")
        assert any(name in message for name in names), message
        assert printable(message) == message

    def try_value(self, keys: Keys, new: Any) -> None:
        try:
            content = self._written(changed(self.value, keys, new))
        except (ValueError, RecursionError, UnicodeEncodeError):
            return  # JSON can't write it.
        self.holds(content)


def mmlu(folder: Path) -> None:
    for name in ("test", "dev"):
        (folder / name).mkdir()
        (folder / name / f"anatomy_{name}.csv").write_text("Which?,1,2,3,4,A\n" * 5)


def c_eval(folder: Path) -> None:
    for name in ("val", "dev"):
        (folder / name).mkdir()
        (folder / name / f"law_{name}.csv").write_text("id,question,A,B,C,D,answer\n" + "0,Which?,1,2,3,4,A\n" * 5)


def cmmlu(folder: Path) -> None:
    for name in ("test", "dev"):
        (folder / name).mkdir()
        (folder / name / "law.csv").write_text(",Question,A,B,C,D,Answer\n" + "0,Which?,1,2,3,4,A\n" * 5)


def bbh(folder: Path) -> None:
    (folder / "bbh").mkdir()
    (folder / "bbh" / "snarks.json").write_text(json.dumps({"examples": [{"input": "Pick.", "target": "(A)"}]}))
    (folder / "cot-prompts").mkdir()
    shown = "Q: Pick.\nA: Let's think step by step. So the answer is (B)."
    (folder / "cot-prompts" / "snarks.txt").write_text("canary\n-----\nDo it.\n\n" + "\n\n".join([shown] * 3))


ALL = {**BUILDERS, "mmlu": mmlu, "c-eval": c_eval, "cmmlu": cmmlu, "bbh": bbh, "bbh-cot": bbh}
TEXTUAL = (".json", ".jsonl", ".csv", ".tsv", ".p", ".txt")


def targets(name: str, folder: Path) -> list[Target]:
    """Return the files of a benchmark that are read, each with a function that reads it all."""
    if name == "pack":
        return [pack(folder)]
    if name in ("train", "chat"):
        return [training(folder, name)]
    ALL[name](folder)

    def read() -> None:
        read_source(parse_source(f"{name}:{folder}"), pictures=folder / "unpacked")

    read()
    files = [file for file in sorted(folder.rglob("*")) if file.suffix in TEXTUAL]
    return [Target(file, read) for file in (files[:2] if name == "mme" else files)]


def pack(folder: Path) -> Target:
    picture(folder / "a.png")
    base = {"question": "What?", "image": "a.png", "task": "t"}
    rows = [
        {**base, "id": "a", "metric": "exact", "answers": ["x"], "images": None},
        {**base, "id": "b", "metric": "letter", "choices": ["x", "y"], "answer_index": 0},
        {**base, "id": "c", "metric": "iou50", "answers": ["[1, 1, 5, 5]"], "size": [8, 8]},
        {**base, "id": "d", "metric": "choice", "answers": ["x"], "choices": ["x", "y"]},
        {
            "id": "e",
            "metric": "choice_logprob",
            "context": "1",
            "choices": ["1", "2"],
            "answer_index": 1,
            "compare": "sum",
        },
        {"id": "f", "metric": "last_word", "context": "He", "continuation": "said"},
        {"id": "g", "metric": "perplexity", "text": "Some words."},
    ]
    file = folder / "test.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return Target(file, lambda: read_pack(folder))


def training(folder: Path, name: str) -> Target:
    picture(folder / "a.png")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
    blocks = [{"type": "image", "path": "a.png"}, {"type": "text", "text": "What?"}]
    row = {"id": "s", "image": "a.png", "task": "t", "conversations": turns}
    messages = [{"role": "user", "content": blocks}, {"role": "assistant", "content": "red"}]
    file = folder / ("train.json" if name == "train" else "train.jsonl")
    file.write_text(json.dumps([row]) if name == "train" else "\n".join([json.dumps({"messages": messages})] * 3))
    return Target(file, lambda: read_samples(folder))


NAMES = [*ALL, "pack", "train", "chat"]


@pytest.mark.parametrize(
    # What the others are read by is also that of one of these.
    "name",
    [name for name in NAMES if name not in ("mmmu", "textvqa", "refcoco-plus", "refcocog", "bbh", "cmmlu", "c-eval")],
)
def test_any_value_anywhere(name: str, tmp_path: Path) -> None:
    found = targets(name, tmp_path)

    @QUICK
    @given(st.data())
    def run(data: st.DataObject) -> None:
        target = data.draw(st.sampled_from(found))
        target.try_value(data.draw(st.sampled_from(target.places)), data.draw(ANYTHING))

    run()
    for target in found:
        for keys in target.places:
            target.try_value(keys, ABSENT)


@pytest.mark.parametrize("name", NAMES)
def test_any_damage_of_bytes(name: str, tmp_path: Path) -> None:
    rng = random.Random(name)
    found = targets(name, tmp_path)
    for target in found:
        for _ in range(6 // len(found) + 1):
            content = bytearray(target.bytes)
            for _ in range(rng.randint(1, 3)):
                content[rng.randrange(len(content))] = rng.randrange(256)
            target.holds(bytes(content[: rng.choice((len(content), rng.randrange(len(content))))]))


@pytest.mark.attack
@pytest.mark.parametrize("name", NAMES)
def test_every_value_everywhere(name: str, tmp_path: Path) -> None:
    for target in targets(name, tmp_path):
        for keys in target.places:
            for value in HOSTILE:
                target.try_value(keys, value)
