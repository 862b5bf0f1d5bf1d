"""Where training data comes from: what is read of each place, where pictures lie, and what every bad input says."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import tarfile
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from source_kit import FORMS, TALKS, chat, data_url, lines, llava, picture, tar_of, write_pictures

from striate.config import parse_config
from striate.data.named_pictures import named_pictures
from striate.data.pictures import check_pictures, open_image, picture_digest
from striate.data.reading import iter_samples, read_samples
from striate.data.sources.source_options import PLAIN, SourceOptions
from striate.data.sources.stored_pictures import MOST_BYTES, PictureBytes, StoredPicture
from striate.errors import ConfigError, DataError
from striate.pipeline.run_inputs import locate_inputs
from striate.pipeline.stage_keys import StageKeys
from striate.progress import FETCHING, Silent
from striate.storage.fingerprints import fingerprint, fingerprint_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def error_of(path: Path, options: SourceOptions = PLAIN) -> str:
    with pytest.raises(DataError) as caught:
        read_samples(path, options=options)
    assert caught.value.allowed
    assert caught.value.next_step
    return str(caught.value)


def row_error(folder: Path, row: dict[str, Any], options: SourceOptions = PLAIN) -> str:
    return error_of(lines(folder, [row]).path, options)


@pytest.mark.parametrize("name", ["an Arrow file", "save_to_disk", "WebDataset, conversations"])
def test_pictures_stay_where_they_lie(name: str, tmp_path: Path, cache: Path) -> None:
    written = FORMS[name](tmp_path / "data")
    samples = read_samples(written.path, options=written.options)
    stored = [found for sample in samples for found in sample.images if isinstance(found, StoredPicture)]
    assert len(stored) == 8
    assert all(found.file.is_relative_to(tmp_path / "data") for found in stored)
    assert not cache.exists()
    assert name.startswith("WebDataset") or "arrow: row 0, 'images'" in str(stored[0])
    for talk, found in zip(TALKS, stored, strict=False):
        content = found.file.read_bytes()[found.offset : found.offset + found.size]
        assert content == picture(talk.picture)


def test_pictures_of_parquet_are_written_once(tmp_path: Path, cache: Path) -> None:
    written = FORMS["Parquet, pictures as objects"](tmp_path / "data")
    first = read_samples(written.path)
    files = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    assert len(files) == 8
    assert read_samples(written.path) == first
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()} == files
    # A picture that the cache lost is written again.
    next(iter(files)).unlink()
    assert read_samples(written.path) == first
    assert all(found.is_file() for sample in first for found in sample.images)


def test_a_stored_picture_stands_for_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(picture("0.png"))
    one = PictureBytes(picture("0.png"), "a").stored()
    other = PictureBytes(picture("0.png"), "b", tmp_path / "0.png", 0).stored()
    assert one == other
    assert len({one, other, PictureBytes(picture("1.png"), "c").stored()}) == 2
    assert picture_digest(one) == picture_digest(tmp_path / "0.png") == fingerprint(tmp_path / "0.png")
    # Workers are handed samples.
    assert pickle.loads(pickle.dumps(other)).read_bytes() == picture("0.png")
    assert open_image(one, "s").tobytes() == open_image(tmp_path / "0.png", "s").tobytes()


def test_a_picture_that_changed_under_its_samples_is_refused(tmp_path: Path) -> None:
    written = FORMS["WebDataset, conversations"](tmp_path / "data")
    stored = read_samples(written.path)[0].images[0]
    assert isinstance(stored, StoredPicture)
    content = bytearray(stored.file.read_bytes())
    content[stored.offset + 40] ^= 1
    stored.file.write_bytes(content)
    with pytest.raises(DataError, match=r"sample 's': can't read picture .*train-0000\.tar.* was changed since"):
        open_image(stored, "s")
    stored.file.unlink()
    with pytest.raises(DataError, match="No such file"):
        check_pictures({stored: "s"})


@pytest.mark.parametrize("size", [0, MOST_BYTES + 1])
def test_a_stored_picture_has_a_size(size: int) -> None:
    with pytest.raises(DataError, match=f"there: the picture has {size} bytes"):
        PictureBytes(bytes(size), "there").stored()


def test_pictures_lie_under_allowed_folders_only(tmp_path: Path) -> None:
    photos, secret = tmp_path / "photos", tmp_path / "secret"
    write_pictures(photos)
    write_pictures(secret)
    (photos / "way.png").symlink_to(secret / "0.png")
    (photos / "inner.png").symlink_to(photos / "0.png")
    allowed = SourceOptions(images=(photos,))
    for name in (
        "0.png",
        str(photos / "0.png"),
        "inner.png",
        f"file://{photos}/0.png",
        f"{tmp_path}/photos/../photos/0.png",
    ):
        row = {**llava(TALKS[0]), "image": name}
        (sample,) = read_samples(_rows(tmp_path / "data", row), options=allowed)
        assert sample.images[0].resolve() == (photos / "0.png").resolve()
    for name in ("way.png", str(secret / "0.png"), "../secret/0.png", f"file://{secret}/0.png", "/etc/hostname"):
        message = error_of(_rows(tmp_path / "data", {**llava(TALKS[0]), "image": name}), allowed)
        assert "leaves the data folder and data.images" in message
        assert "allow the folder that it lies in with data.images" in message
    message = error_of(_rows(tmp_path / "data", {**llava(TALKS[0]), "image": "no.png"}), allowed)
    assert f"or inside {photos}" in message


def _rows(folder: Path, *rows: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return folder / "train.jsonl"


def test_folders_that_are_none_are_refused(tmp_path: Path) -> None:
    raw = {"model": {"path": "owner/m"}, "data": {"train": ["d"], "images": [str(tmp_path / "none")]}}
    with pytest.raises(ConfigError, match=r"data\.images names .*none', which is no folder"):
        SourceOptions.of(parse_config(raw).data)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("data.columns={imge: a}", "'imge' is none of image, images, question"),
        ("data.columns={imge: a}", "did you mean 'image'?"),
        ("data.columns={image: ' '}", "'image' names no column"),
        ("data.question=' '", "a question with text in it"),
        ("data.untagged=last", "'refuse' or 'first'"),
    ],
)
def test_settings_that_mean_nothing(setting: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text.replace("?", r"\?")):
        parse_config({"model": {"path": "owner/m"}, "data": {"train": ["d"]}}, [setting])


TALK = TALKS[0]
PLAIN_ROW = {"question": "Q", "answer": "A"}
OF_COLUMNS = SourceOptions(columns={"image": "file", "question": "ask", "answer": "label"})
BAD_ROWS: dict[str, tuple[dict[str, Any], SourceOptions]] = {
    "no column 'file', which data.columns says is 'image'": ({"ask": "Q", "label": "A"}, OF_COLUMNS),
    "did you mean 'labell'?": ({"ask": "Q", "labell": "A", "file": "0.png"}, OF_COLUMNS),
    "it has `messages` and `question` with `answer`, which are several conversations": (
        {**PLAIN_ROW, "messages": []},
        PLAIN,
    ),
    "say which with data.columns, such as {messages: messages}": ({**PLAIN_ROW, "messages": []}, PLAIN),
    "data.columns={question: prompt, answer: chosen}": ({"prompt": "Q", "chosen": "A", "rejected": "B"}, PLAIN),
    "add 'response', or say which field it is with data.columns={response: NAME}": ({"query": "Q"}, PLAIN),
    "it has no conversation; its fields are 'caption', 'file'": ({"caption": "c", "file": "f"}, PLAIN),
    "or set data.untagged=first": ({**llava(TALK), "conversations": llava(TALKS[8])["conversations"]}, PLAIN),
    "'answer' is a list, ['A', 'B'], and training learns one answer": ({**PLAIN_ROW, "answer": ["A", "B"]}, PLAIN),
    "what is asked of every record is data.question": (
        {"label": "A"},
        SourceOptions(columns={"question": "What is it?", "answer": "label"}),
    ),
    "set data.columns={image: 'img'}, rename 'img' to 'image'": ({**PLAIN_ROW, "img": "0.png"}, PLAIN),
    "`messages` is not JSON: line 1: the text stops": ({"messages": '[{"role":'}, PLAIN),
    "`messages` is not a list of turns": ({"messages": {"role": ["user"], "content": []}}, PLAIN),
    "'history' holds ['Q']": ({"query": "Q", "response": "A", "history": [["Q"]]}, PLAIN),
    "picture 'https://x.org/a.png' is on the web": ({**PLAIN_ROW, "image": "https://x.org/a.png"}, PLAIN),
    "can't read the data URL 'data:image/png,x': it is not in base64": (
        {**PLAIN_ROW, "image": "data:image/png,x"},
        PLAIN,
    ),
    "can't read the data URL 'data:image/png;base64,_': ": ({**PLAIN_ROW, "image": "data:image/png;base64,_"}, PLAIN),
    "it is empty": ({**PLAIN_ROW, "image": "data:image/png;base64,"}, PLAIN),
    "'image' is {'path': None}": ({**PLAIN_ROW, "image": {"path": None}}, PLAIN),
    "unknown role 'tool'": ({"messages": [{"role": "tool", "content": "x"}]}, PLAIN),
    "`texts` is not a list of turns": ({"texts": "x"}, PLAIN),
    "turn 0: it lacks 'user' or 'assistant'": ({"texts": [{"user": "x"}]}, PLAIN),
    "`image` is 3": ({**PLAIN_ROW, "image": 3}, PLAIN),
}


@pytest.mark.parametrize("text", BAD_ROWS)
def test_bad_rows(text: str, tmp_path: Path) -> None:
    row, options = BAD_ROWS[text]
    assert text in row_error(tmp_path / "data", row, options)


MOVING: dict[str, dict[str, Any]] = {
    "a field": {**llava(TALKS[8]), "video": "a.mp4"},
    "a list": {"query": "Q", "response": "A", "videos": ["a.mp4"]},
    "under image": {**PLAIN_ROW, "image": "a.MP4"},
    "under another name": {**PLAIN_ROW, "clip": "a.webm"},
    "a data URL": {**PLAIN_ROW, "image": "data:video/mp4;base64,AAAA"},
    "a placeholder in LLaVA": {
        "conversations": [{"from": "human", "value": "<video>\nQ"}, {"from": "gpt", "value": "A"}]
    },
    "a placeholder in alpaca": {"instruction": "<audio>\nQ", "input": "", "output": "A"},
    "a placeholder in query": {"query": "<video>\nQ", "response": "A"},
    "a placeholder in prompt": {"prompt": "<video>\nQ", "completion": "A"},
    "a placeholder in question": {"question": "<audio>", "answer": "A"},
    "a placeholder in texts": {"texts": [{"user": "<video>\nQ", "assistant": "A"}]},
    "a tag": {"query": "<img>a.mp4</img>Q", "response": "A"},
    **{
        f"a block of type {kind}": chat(TALK, lambda _, kind=kind: [{"type": kind, kind: {"url": "a"}}])  # type: ignore[misc]
        for kind in ("video", "video_url", "audio", "input_audio", "audio_url")
    },
    "a block without a type": chat(TALK, lambda _: [{"video": "a.mp4"}]),
    "an image block of a video": chat(TALK, lambda _: [{"type": "image", "image": "a.mov"}]),
}


@pytest.mark.parametrize("kind", MOVING)
def test_videos_and_sounds_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    message = row_error(tmp_path / "data", MOVING[kind])
    assert "videos and sounds can't be shown" in message
    assert "take frames as pictures, or remove the sample" in message


def test_videos_in_files_of_data_are_refused_by_name(tmp_path: Path) -> None:
    import pyarrow.parquet

    tar_of([("a.mp4", b"x"), ("a.json", b"{}")], tmp_path / "a.tar")
    assert "member 'a.mp4': videos and sounds can't be shown" in error_of(tmp_path / "a.tar")
    features = {"info": {"features": {"clip": {"_type": "Video"}}}}
    table = pyarrow.table({"clip": ["x"]}).replace_schema_metadata({"huggingface": json.dumps(features)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert "column 'clip' holds video, but videos and sounds can't be shown" in error_of(tmp_path / "a.parquet")


def test_a_question_for_all_and_names_of_classes(tmp_path: Path) -> None:
    import pyarrow.parquet

    features = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}, "n": 3}}}
    table = pyarrow.table({"image": [picture("0.png")] * 2, "label": [1, 0]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    options = SourceOptions(columns={"answer": "label"}, question="Which animal is this?")
    first, second = read_samples(tmp_path / "a.parquet", options=options)
    assert (first.question, first.answer, second.answer) == ("Which animal is this?", "dog", "cat")
    assert first.messages[0].text == "<image>\nWhich animal is this?"
    assert first.images == second.images
    with pytest.raises(DataError, match="it has no conversation; its fields are 'image', 'label'"):
        read_samples(tmp_path / "a.parquet")


def test_records_without_the_columns_are_read_in_their_own_form(tmp_path: Path) -> None:
    row = {"ask": "Q", "label": "A", "file": "0.png", "answer": "not this"}
    path = lines(tmp_path / "data", [llava(TALKS[0]), row]).path
    first, second = read_samples(path, options=OF_COLUMNS)
    assert (first.answer, second.answer, second.question) == ("red", "A", "Q")


def test_turns_as_json_and_as_columns(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    columns = {"role": ["user", "assistant"], "content": ["Q", "A"]}
    rows = [{"messages": turns}, {"messages": json.dumps(turns)}, {"messages": columns}]
    samples = read_samples(lines(tmp_path / "data", rows).path)
    assert [sample.messages for sample in samples] == [samples[0].messages] * 3


@pytest.mark.parametrize(
    "record",
    [
        {"question": " Q ", "answer": " oak\n"},
        {"conversations": [{"from": "human", "value": " Q "}, {"from": "gpt", "value": "\n oak "}]},
        {"messages": [{"role": "user", "content": " Q "}, {"role": "assistant", "content": [{"text": " oak"}]}]},
    ],
)
def test_white_space_around_an_answer_is_left_out(record: dict[str, Any], tmp_path: Path) -> None:
    (sample,) = read_samples(_rows(tmp_path, record))
    assert [message.text for message in sample.messages] == [" Q ", "oak"]


def test_conversations_of_several_turns(tmp_path: Path) -> None:
    rows = [
        {"query": "And?", "response": "B", "history": [["<image>\nQ", "A"]], "images": ["0.png"], "system": "S"},
        {"prompt": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"},
                    {"role": "user", "content": "And?"}], "completion": "B"},
        {"texts": [{"user": "Q", "assistant": "A"}, {"user": "And?", "assistant": "B"}], "images": ["0.png", "1.png"]},
        {"conversations": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], "system": "S"},
    ]  # fmt: skip
    first, second, third, fourth = read_samples(lines(tmp_path / "data", rows).path)
    assert [message.role for message in first.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [message.text for message in second.messages] == ["Q", "A", "And?", "B"]
    assert third.messages[0].text == "<image><image>\nQ"
    assert [message.role for message in fourth.messages] == ["system", "user", "assistant"]


def documented() -> list[str]:
    """The whole records among the examples of docs/data.md."""
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| [^|`]+ \| `(\{[^`]*\})`[ ;]", page, re.MULTILINE)
    return [cell for cell in cells if "..." not in cell and len({*json.loads(cell)} - {"type"}) > 1]


def test_documented_records_are_read(tmp_path: Path) -> None:
    rows = documented()
    assert len(rows) >= 7
    (tmp_path / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")
    for name in ("1.jpg", "a.png", "b.png"):
        (tmp_path / name).write_bytes(picture("0.png"))
    samples = read_samples(tmp_path)
    assert len(samples) == len(rows)
    assert all(sample.images and sample.answer for sample in samples)


BAD_TABLES = {
    "has no header": "\n",
    "names two columns 'a'": "a,a\n1,2\n",
    "line 2 has 3 cells, and the header 2": "question,answer\n1,2,3\n",
    "line 3 has 1 cells, and the header 2": "question,answer\n1,2\n3\n",
    "is no table: unexpected end of data": 'question,answer\n"1,2\n',
    "is not UTF-8 text: byte": b"question,answer\n\xff,2\n",
    "'answer', or say which field it is": "question,answer\nWhat?,\n",
}


@pytest.mark.parametrize("text", BAD_TABLES)
def test_bad_tables(text: str, tmp_path: Path) -> None:
    content = BAD_TABLES[text]
    (tmp_path / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    message = error_of(tmp_path / "t.csv")
    assert text in message
    assert "t.csv" in message


def test_tables_of_spreadsheets(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(
        '\ufeffquestion;answer\r\n"Is it\r\nred; or not?";"3,5"\r\n\r\n007;yes\r\n'.encode()
    )
    first, second = read_samples(tmp_path)
    assert (first.question, first.answer) == ("Is it\r\nred; or not?", "3,5")
    assert (second.id, second.question) == ("t-3", "007")


def _member(name: str, **values: Any) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for key, value in values.items():
        setattr(member, key, value)
    return member


BAD_MEMBERS = {
    "is a link, a device or sparse": _member("a.json", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "'b.json' is a link": _member("b.json", type=tarfile.LNKTYPE, linkname="../secret"),
    "'c.json' is a link": _member("c.json", type=tarfile.CHRTYPE),
    "has 16777217 bytes": _member("a.json", size=2**24 + 1),
}


@pytest.mark.parametrize("text", BAD_MEMBERS)
def test_bad_tars(text: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = BAD_MEMBERS[text]
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    assert text in error_of(tmp_path / "a.tar")


def test_more_bad_tars(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        archive.addfile(_member("a.json"))
    assert "is no tar that can be read" in error_of(tmp_path / "a.tar")
    assert "gunzip" in error_of(tmp_path / "a.tar")
    tar_of([("a.json", b"{"), ("a.png", b"x")], tmp_path / "b.tar")
    assert "member 'a.json' is not JSON" in error_of(tmp_path / "b.tar")
    tar_of([("a.txt", b"\xff")], tmp_path / "c.tar")
    assert "member 'a.txt' is not UTF-8" in error_of(tmp_path / "c.tar")
    # A name that leads out is a name: nothing is unpacked.
    row = json.dumps({**llava(TALK), "image": "../../0.png"}).encode()
    tar_of([("../../0.png", picture("0.png")), ("../../0.json", row)], tmp_path / "d" / "d.tar")
    (sample,) = read_samples(tmp_path / "d")
    assert sample.images[0].read_bytes() == picture("0.png")
    assert [path.name for path in tmp_path.rglob("*.png")] == []


def test_what_is_read_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_pictures(folder / "images")
    assert "for photos write a table of their names and answers" in error_of(folder)
    for name in ("b.jsonl", "test.jsonl", "notes.txt", "val_x.csv"):
        (folder / name).write_text(json.dumps({"id": name, **PLAIN_ROW}))
    assert [sample.id for sample in read_samples(folder)] == ["b.jsonl"]
    (folder / "a.jsonl").write_text(json.dumps({"id": "a.jsonl", **PLAIN_ROW}))
    assert "has 2 files that may be its training data: 'a.jsonl', 'b.jsonl'" in error_of(folder)
    (folder / "train.csv").write_text("id,question,answer\ncsv,Q,A\n")
    assert [sample.id for sample in read_samples(folder)] == ["csv"]
    (folder / "train.jsonl").write_text(json.dumps({"id": "train", **PLAIN_ROW}))
    assert [sample.id for sample in read_samples(folder)] == ["train"]
    assert "is a data set of the hub" not in error_of(folder / "no.json")


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"_data_files": [{"filename": "../secret.arrow"}]}, "leaves the folder"),
        ({"_data_files": [{"filename": "no.arrow"}]}, "names 'no.arrow', which is no Arrow file there"),
        ({"_data_files": []}, "names no files"),
        ({"_data_files": [{"filename": 3}]}, "names no files"),
        ([], "holds list, not an object"),
    ],
)
def test_saved_data_sets_that_are_damaged(state: Any, text: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.arrow").write_bytes(b"x")
    (folder / "state.json").write_text(json.dumps(state))
    assert text in error_of(folder)


class Lines(Silent):
    """A progress that keeps what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_a_data_set_of_the_hub_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from datasets.arrow_writer import ArrowWriter
    from source_kit import trl_data

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    data = trl_data()
    folder = tmp_path / "hub" / "owner___photos" / "default" / "0.0.0" / "abc"
    folder.mkdir(parents=True)
    writer = ArrowWriter(path=str(folder / "photos-train.arrow"), features=data.features)
    writer.write_table(data.data.table)
    count, size = writer.finalize()
    split = datasets.SplitInfo("train", size, count, dataset_name="photos")
    datasets.DatasetInfo(
        features=data.features, builder_name="parquet", dataset_name="photos", config_name="default", version="0.0.0",
        splits=datasets.SplitDict({"train": split}),
    ).write_to_directory(str(folder))  # fmt: skip
    told, bars, load = Lines(), [datasets.utils.are_progress_bars_disabled()], datasets.load_dataset

    def watched(*names: Any, **options: Any) -> Any:
        bars.append(datasets.utils.are_progress_bars_disabled())
        return load(*names, **options)

    monkeypatch.setattr(datasets, "load_dataset", watched)
    within = FETCHING.set(told)
    samples = read_samples(Path("hf:owner/photos"))
    FETCHING.reset(within)
    size = (folder / "photos-train.arrow").stat().st_size / 1e6
    assert told.lines == ["fetch hf:owner/photos", f"fetch hf:owner/photos: {len(TALKS)} rows, {size:.1f} MB"]
    assert [*bars, datasets.utils.are_progress_bars_disabled()] == [False, True, False]
    assert [sample.id for sample in samples] == [talk.id for talk in TALKS]
    assert [found.read_bytes() for found in samples[0].images] == [picture("0.png")]
    assert "Unknown split" in error_of(Path("hf:owner/photos:none"))
    monkeypatch.setattr(datasets, "load_dataset", None)
    assert read_samples(Path("hf:owner/photos")) == samples
    (folder / "photos-train.arrow").unlink()
    assert "can't fetch hf:owner/photos" in error_of(Path("hf:owner/photos"))


def test_a_hub_that_is_silent_is_told_before_a_data_set_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi, constants

    from striate.data.sources import hub

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "SECONDS", 0.05)
    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: time.sleep(1))
    assert error_of(Path("hf:owner/photos")).splitlines() == [
        f"can't fetch hf:owner/photos: the hub can't be reached ({constants.ENDPOINT} did not answer within 0.05 s)",
        f"  allowed: {hub._ALLOWED}",
        "  next:    check the network; for a data set that was fetched before, set HF_HUB_OFFLINE=1",
    ]


@pytest.mark.parametrize("name", ["hf:photos", "hf:owner/a/b/c", "hf:", "hf:owner/name:"])
def test_names_that_are_none_of_the_hub(name: str) -> None:
    assert "is no data set of the hub" in error_of(Path(name))


def test_the_hub_is_named_where_a_path_may_be_meant_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert "a data set of the hub is named hf:owner/name" in error_of(Path("owner/name"))


def test_without_the_packages_an_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    written = FORMS["an Arrow file"](tmp_path / "data")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install pyarrow" in error_of(written.path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'striate[hub]'" in error_of(Path("hf:owner/name"))


def test_a_device_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    assert "no such file" in error_of(tmp_path / "a.tar")


def test_a_data_url_is_a_picture(tmp_path: Path) -> None:
    (sample,) = read_samples(lines(tmp_path / "data", [{**PLAIN_ROW, "image": data_url("3.png")}]).path)
    assert sample.images[0].read_bytes() == picture("3.png")


def test_pictures_are_never_all_in_memory(tmp_path: Path) -> None:
    import pyarrow.parquet

    rows = [{"question": "Q", "answer": "A", "image": bytes([n]) * 2**20} for n in range(1, 65)]
    members = [(f"{n}.{end}", row["image"] if end == "png" else b'{"question": "Q", "answer": "A"}')
               for n, row in enumerate(rows) for end in ("png", "json")]  # fmt: skip
    tar_of(members, tmp_path / "a.tar")
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(
        table, tmp_path / "a.parquet", row_group_size=4, use_dictionary=False, compression="none"
    )
    del rows, members, table
    for name in ("a.tar", "a.parquet"):
        tracemalloc.start()
        pool = pyarrow.default_memory_pool()
        before = pool.bytes_allocated()
        samples, most = [], 0
        for sample in iter_samples(tmp_path / name):
            samples.append(sample)
            most = max(most, pool.bytes_allocated() - before)
        most += tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(samples) == 64
        assert most < 32 * 2**20
        assert samples[7].images[0].read_bytes() == bytes([8]) * 2**20


@pytest.mark.parametrize(("name", "count"), [("CSV with columns by name", 8), ("WebDataset, conversations", 0)])
def test_what_a_run_follows_from(name: str, count: int, tmp_path: Path) -> None:
    written = FORMS[name](tmp_path / "data")
    raw = {
        "model": {"path": "owner/m"},
        "data": {"train": [str(written.path)], "columns": dict(written.options.columns)},
    }
    config = parse_config(raw)

    def key() -> str:
        run: Any = SimpleNamespace(config=config, note_fingerprint=lambda *_: None)
        keys = StageKeys(run, locate_inputs(config, Silent()), list)
        return fingerprint_of({"data": keys.analyze()["data"]})

    assert len(named_pictures(written.path, written.options)) == count
    before = key()
    assert key() == before
    file = tmp_path / "data" / ("images/0.png" if count else "train-0001.tar")
    content = file.read_bytes()
    # A picture of another colour.
    file.write_bytes(picture("1.png") if count else content.replace(picture("7.png")[-30:], picture("6.png")[-30:]))
    assert file.read_bytes() != content
    assert key() != before
