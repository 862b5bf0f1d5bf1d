"""Reading LLaVA and chat files: what comes out, and what every kind of bad input says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from striate.data.reading import read_many, read_samples
from striate.data.samples import Message, Sample
from striate.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / "images" / name)
    return tmp_path


def llava(question: str = "<image>\nWhat?", answer: str = "red", **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "s1", "image": "images/a.png", "conversations": turns, **more}


def write(folder: Path, rows: Any, name: str = "train.json") -> Path:
    path = folder / name
    text = "\n".join(map(json.dumps, rows)) if name.endswith("l") else json.dumps(rows)
    path.write_text(text, encoding="utf-8")
    return path


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_samples(path)
    return str(caught.value)


def test_llava_sample(folder: Path) -> None:
    (sample,) = read_samples(write(folder, [llava(task="colour")]))
    assert sample.messages == (Message("user", "<image>\nWhat?"), Message("assistant", "red"))
    assert sample.images == (folder / "images" / "a.png",)
    assert (sample.id, sample.task, sample.question, sample.answer) == ("s1", "colour", "What?", "red")
    assert sample.chat()[0] == {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
    assert sample.prompt().messages == sample.messages[:1]
    assert sample.prompt().prompt() == sample.prompt()


def test_chat_messages_with_blocks(folder: Path) -> None:
    content = [
        {"type": "text", "text": "Compare "},
        {"type": "image", "path": "a.png"},
        {"type": "image"},
        {"type": "text", "text": "."},
    ]
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": content},
                {"role": "assistant", "content": [{"type": "text", "text": "same"}]},
            ],
            "images": ["images/b.png"],
        }
    ]
    (sample,) = read_samples(write(folder, rows, "mine.jsonl"))
    assert sample.id == "mine-1"
    # The first placeholder names its own picture; the second is the first of `images`.
    assert [path.name for path in sample.images] == ["a.png", "b.png"]
    kinds = [block["type"] for block in sample.chat()[1]["content"]]
    assert kinds == ["text", "image", "image", "text"]


def test_text_only_and_limit(folder: Path) -> None:
    rows = [llava("Is ice cold?", id=f"t{index}") for index in range(5)]
    for row in rows:
        del row["image"]
    path = write(folder, rows)
    assert [sample.id for sample in read_samples(folder, limit=2)] == ["t0", "t1"]
    assert read_samples(path)[0].images == ()
    chosen = read_many([path, path], limit=4, seed=3)
    assert chosen == read_many([path, path], limit=4, seed=3)
    assert len(chosen) == 4
    assert chosen != read_many([path, path], limit=4, seed=4)
    assert len(read_many([path, path])) == 10


def test_reading_needs_no_torch(folder: Path) -> None:
    import subprocess

    code = "import sys, striate.data.reading; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


BAD_SAMPLES = [
    ({"conversations": [{"from": "human", "value": "Hi"}], "image": None}, "has no answer at its end"),
    (llava("What?"), "has 0 <image> placeholders and 1 pictures"),
    (llava("<image><image>"), "has 2 <image> placeholders and 1 pictures"),
    (llava(answer="see <image>"), "<image> in a turn of assistant"),
    (llava(answer="  "), "an empty assistant turn"),
    (llava(image="images/none.png"), "no picture 'images/none.png'"),
    (llava(image="../secret.png"), "picture '../secret.png' leaves the data folder"),
    (llava(image="/etc/hostname"), "picture '/etc/hostname' leaves the data folder"),
    (llava(image="link.png"), "picture 'link.png' leaves the data folder"),
    (llava(image=3), "`image` is 3"),
    ({"conversations": [{"from": "humam", "value": "Hi"}]}, "unknown role 'humam'"),
    ({"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}]}, "turns out of order"),
    ({"conversations": [{"from": "human"}]}, "lacks 'from' or 'value'"),
    ({"conversations": []}, "is not a list of turns"),
    ({"text": "Hi"}, "it has no conversation; its fields are 'text'"),
    (
        {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
        "a content block of type video, but videos and sounds can't be",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "table"}]}]}, "can't use content block"),
    ({"messages": [{"role": "user", "content": 7}]}, "its content is a int"),
    ("Hi", "is a str, not a sample"),
    (
        {**llava("<video>\nWhat?"), "image": None, "video": "a.mp4"},
        "'video' is 'a.mp4', but videos and sounds can't be",
    ),
    (llava(audios=["a.wav"]), "'audios' is ['a.wav'], but videos and sounds can't be shown"),
    ({**llava("<video>\nWhat?"), "image": None}, "turn 0: <video> in a question, but videos and sounds can't be shown"),
    (
        {**llava("What is it?"), "image": None, "clip": ["x/a.MP4"]},
        "'clip' is ['x/a.MP4'], but videos and sounds can't be",
    ),
    ({**llava("What is it?"), "image": None, "img": "a.png"}, "rename 'img' to 'image', or remove it if"),
    (llava(images=["b.png"]), "'image' and 'images' name different things"),
    (llava(id=["x"]), "'id' is ['x']"),
    (llava(id=True), "'id' is True"),
    (llava(task={"a": 1}), "'task' is {'a': 1}"),
    (llava(image=["images/a.png", None]), "`image` is ['images/a.png', None]"),
    ({"conversations": [None]}, "turn 0: it lacks 'from' or 'value'"),
    ({"conversations": [{"from": ["human"], "value": "Hi"}]}, "unknown role ['human']"),
    ({"conversations": [{"from": "human", "value": None}]}, "it lacks 'from' or 'value'"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image", "image": {"bytes": 1}}]}]},
        "'image' is {'bytes': 1}",
    ),
    ({"messages": [{"role": "system", "content": "<image>"}]}, "<image> in a turn of system"),
]


@pytest.mark.parametrize(("row", "text"), BAD_SAMPLES, ids=[text for _, text in BAD_SAMPLES])
def test_bad_samples(folder: Path, row: Any, text: str) -> None:
    outside = folder.parent / f"{folder.name}-outside.png"
    outside.write_bytes(b"")
    (folder / "link.png").symlink_to(outside)
    path = write(folder, [row], "train.jsonl")
    message = error_of(path)
    assert text in message
    assert f"{path}: line 1" in message
    assert "next:" in message
    assert "sample number 0" in error_of(write(folder, [row], "other.json"))


def test_null_is_absent_and_two_names_may_agree(folder: Path) -> None:
    columns = dict.fromkeys(("messages", "images", "video", "audio", "task", "clip"))
    plain = {**llava("What is <video> in HTML? <video></video>"), **columns, "image": None, "id": None}
    rows = [plain, llava(images=["images/a.png"], messages=None), llava("Name a file.", "a.png", image=[], id="")]
    first, second, third = read_samples(write(folder, rows))
    assert (first.id, first.images, first.task) == ("train-0", (), "")
    assert [path.name for path in second.images] == ["a.png"]
    assert (third.id, third.images) == ("train-2", ())


def test_did_you_mean_role(folder: Path) -> None:
    path = write(folder, [{"conversations": [{"from": "humann", "value": "Hi"}]}])
    assert "did you mean 'human'?" in error_of(path)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("train.json", '[{"question": "Q", "answer": "A"},\n {"id": 2', "line 2: the text stops in the middle"),
        ("train.json", '[{"id": "abc', "line 1: the text stops in the middle"),
        ("train.json", '[\n{"id": nope}\n]', "line 2: Expecting value"),
        ("train.jsonl", '{"a": 1,}\n', "line 1"),
        ("train.json", '{"id": 1}', "holds one JSON dict, not a list"),
        ("train.json", "[]", "holds no samples"),
        ("train.jsonl", "\n", "holds no samples"),
        ("train.json", "", "is not JSON: line 1"),
        ("train.csv", "a,b", "holds no samples"),
        ("train.xlsx", "a,b", "ends in '.xlsx', which is not read"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str, text: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    message = error_of(tmp_path / name)
    assert text in message
    assert name in message


def test_missing_files(tmp_path: Path) -> None:
    assert "no such file" in error_of(tmp_path / "none.json")
    assert "train.json, train.jsonl, or one file" in error_of(tmp_path)
    (tmp_path / "train.json").write_bytes(b"\xff\xfe[]")
    assert "is not UTF-8 text" in error_of(tmp_path)


def test_placeholder_in_the_middle() -> None:
    message = Message("user", "Left <image>\nright <image>, which?")
    assert [block.get("text") for block in message.content()] == ["Left ", None, "right ", None, ", which?"]
    assert Sample("x", (message,)).answer == ""
