"""Malformed training data of every kind: it is read, or refused by name; no traceback, and nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_kit import FORMS, TALKS, Written, write_pictures

from striate.data.parsing import parse_sample
from striate.data.reading import read_samples
from striate.data.sources.image_folder import ImageFolder
from striate.data.sources.source_options import SourceOptions
from striate.errors import ArtifactError, DataError, StriateError

# One of each reader, and of each form of JSON.
DAMAGED = (
    "LLaVA, JSON",
    "OpenAI, data URLs",
    "Qwen-VL's tags",
    "CSV with columns by name",
    "Parquet, pictures as objects",
    "an Arrow file",
    "an Arrow file, compressed",
    "save_to_disk",
    "WebDataset, conversations",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("damaged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STRIATE_CACHE", str(root / "cache"))
        yield root


@pytest.fixture(scope="module")
def written(root: Path) -> dict[str, tuple[Written, dict[Path, bytes]]]:
    """Each form with the files that hold its data, whole."""
    found = {}
    for number, name in enumerate(DAMAGED):
        place = FORMS[name](root / str(number))
        files = [path for path in (root / str(number)).rglob("*") if path.is_file() and path.suffix != ".png"]
        found[name] = place, {path: path.read_bytes() for path in sorted(files)}
    return found


def refused_or_read(read: Any) -> None:
    """Call `read`, which may raise an error that says what is allowed and what to do, and no other."""
    error: StriateError | None = None
    try:
        read()
    except StriateError as caught:
        error = caught
    assert error is None or (error.given and error.allowed and error.next_step)


@st.composite
def damage(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with a few bytes changed, left out or put in, or broken off."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        length = draw(st.sampled_from((0, 1, 1, 4, 40, 10**9)))
        content = content[:start] + draw(st.binary(max_size=8)) + content[start + length :]
    return content


@pytest.mark.parametrize("name", DAMAGED)
@settings(max_examples=25, suppress_health_check=list(HealthCheck), database=None)
@given(data=st.data())
def test_damaged_files(name: str, written: dict[str, Any], root: Path, data: st.DataObject) -> None:
    place, files = written[name]
    file = data.draw(st.sampled_from(sorted(files)))
    file.write_bytes(data.draw(damage(files[file])))
    try:
        before = sorted(place.path.parent.rglob("*"))
        refused_or_read(lambda: [picture.read_bytes() for s in read_samples(place.path, None, place.options)
                                 for picture in s.images])  # fmt: skip
        left = [path for path in sorted(place.path.parent.rglob("*")) if path not in before]
        assert [path for path in left if not path.is_relative_to(root / "cache")] == []
        assert [path for path in (root / "cache").rglob("*") if path.name.endswith(".partial")] == []
    finally:
        file.write_bytes(files[file])


KEYS = st.sampled_from(
    [
        *("id", "task", "image", "images", "conversations", "messages", "texts", "query", "response", "history"),
        *("instruction", "input", "output", "prompt", "completion", "question", "answer", "system", "video", "file"),
        *("from", "value", "role", "content", "type", "text", "url", "bytes", "path", "image_url", "user", "chosen"),
    ]
)
TEXTS = st.sampled_from(
    [
        *("user", "assistant", "human", "gpt", "system", "image", "text", "video", "0.png", "<image>", "<video>"),
        *("../x", "\0", "\ud800", "data:image/png;base64,AA==", "data:,", "http://x", "file:///etc/passwd", "http://["),
        *("<img>0.png</img>", "", " ", "yes", "a" * 300, "file://[x", "~/x.png"),
    ]
)
SCALARS = st.one_of(TEXTS, st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
ROWS: list[dict[str, Any]] = [
    {"conversations": [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}], "image": "0.png"},
    {"messages": [{"role": "user", "content": [{"type": "image", "path": "0.png"}, {"type": "text", "text": "Q"}]},
                  {"role": "assistant", "content": "A"}]},
    {"texts": [{"user": "Q", "assistant": "A"}], "images": ["0.png"]},
    {"query": "Q", "response": "A", "history": [["Q", "A"]]},
    {"instruction": "Q", "input": "I", "output": "A"},
    {"prompt": "Q", "completion": [{"role": "assistant", "content": "A"}]},
    {"question": "Q", "answer": "A", "image": "0.png"},
]  # fmt: skip


@settings(max_examples=400, suppress_health_check=list(HealthCheck), database=None)
@given(row=st.one_of(st.dictionaries(KEYS, VALUES, max_size=2), VALUES), data=st.data())
def test_nonsense_records(row: Any, root: Path, data: st.DataObject) -> None:
    folder = root / "photos"
    if not folder.exists():
        write_pictures(folder)
    if isinstance(row, dict):
        right = data.draw(st.sampled_from([{}, *ROWS]))
        wrong = {key: data.draw(VALUES) for key in right if data.draw(st.integers(0, 3)) == 0}
        row = {**right, **wrong, **row}
    options = data.draw(st.sampled_from((SourceOptions(), SourceOptions({"image": "file"}, "Q?", (root,), "first"))))
    pictures = ImageFolder(folder, options.images)
    refused_or_read(lambda: parse_sample(row, "train.jsonl: line 1", "1", pictures, options))


def test_a_cache_that_cannot_be_written(written: dict[str, Any], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, _ = written["Parquet, pictures as objects"]
    (root / "file").write_text("no folder")
    monkeypatch.setenv("STRIATE_CACHE", str(root / "file"))
    with pytest.raises(ArtifactError, match="can't write"):
        read_samples(place.path)


def test_a_disk_that_is_full_leaves_nothing(
    written: dict[str, Any], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _ = written["Parquet, pictures as objects"]
    shutil.rmtree(root / "cache", ignore_errors=True)

    def full(path: Path, content: bytes) -> None:
        with path.open("wb") as stream:
            stream.write(bytes(content)[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(ArtifactError, match="No space left"):
            read_samples(place.path)
    assert [path for path in (root / "cache").rglob("*") if path.is_file()] == []
    assert [sample.id for sample in read_samples(place.path)] == [talk.id for talk in TALKS]


def test_a_record_says_where_it_stands(root: Path) -> None:
    (root / "deep.jsonl").write_text(json.dumps({"question": "Q", "answer": ""}) + "\n" + "[" * 3000 + "\n")
    with pytest.raises(DataError, match=r"deep\.jsonl: line 1 .*: 'answer' is ''"):
        read_samples(root / "deep.jsonl")
