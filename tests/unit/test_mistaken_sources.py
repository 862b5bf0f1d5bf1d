"""Data that is easily mistaken for something else than it is: another picture, half of a data set, text alone."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from source_kit import picture, tar_of, write_pictures
from typer.testing import CliRunner

from striate.cli.app import app
from striate.config import parse_config
from striate.data.overview.answer_tally import AnswerTally
from striate.data.reading import columns_apply, read_samples
from striate.data.samples import Message, Sample
from striate.data.sources.source_options import PLAIN, SourceOptions
from striate.errors import ConfigError, DataError

ROW = {"question": "Q", "answer": "A"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))


def refused(path: Path, options: SourceOptions = PLAIN) -> str:
    with pytest.raises(DataError) as caught:
        read_samples(path, options=options)
    assert caught.value.next_step
    return str(caught.value)


def rows(folder: Path, *records: dict[str, Any], name: str = "train.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("ending", ["heic", "AVIF", "jfif", "ppm"])
def test_a_picture_of_any_ending_is_never_left_out(ending: str, tmp_path: Path) -> None:
    row = json.dumps(ROW).encode()
    tar_of([(f"0.{ending}", picture("0.png")), ("0.json", row)], tmp_path / "a.tar")
    (sample,) = read_samples(tmp_path / "a.tar")
    assert sample.images[0].read_bytes() == picture("0.png")
    path = rows(tmp_path / "data", {**ROW, "photo": f"0.{ending}"})
    assert "no picture under 'image' or 'images', but 'photo' is" in refused(path)


@pytest.mark.parametrize("ending", ["mpg", "wmv", "aac"])
def test_a_video_of_any_ending_is_refused(ending: str, tmp_path: Path) -> None:
    tar_of([(f"0.{ending}", b"x"), ("0.json", json.dumps(ROW).encode())], tmp_path / "a.tar")
    assert "videos and sounds can't be shown" in refused(tmp_path / "a.tar")


def test_two_allowed_folders_with_another_picture_of_one_name(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        write_pictures(folder)
    both = SourceOptions(images=(first, second))
    path = rows(tmp_path / "data", {**ROW, "image": "0.png"})
    assert read_samples(path, options=both)[0].images == (first / "0.png",)
    Image.new("RGB", (30, 28), "white").save(second / "0.png")
    with pytest.raises(DataError) as caught:
        read_samples(path, options=both)
    # As a whole: where it is shown, long paths are cut.
    assert f"'0.png' may be either of two that differ: {first}/0.png or {second}/0.png" in caught.value.given
    named = rows(tmp_path / "data", {**ROW, "image": str(second / "0.png")})
    assert read_samples(named, options=both)[0].images == (second / "0.png",)


def test_hidden_files_are_no_data(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("question,answer\nQ,A\n")
    (tmp_path / "._labels.csv").write_bytes(b"\x00\x05\x16\x07")
    assert len(read_samples(tmp_path)) == 1


@pytest.mark.parametrize("hash_of_part", ["", "-a09b74b3ef9c3b56"])
def test_a_data_set_of_which_files_are_missing(hash_of_part: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    name = "train-0000{}-of-00003" + hash_of_part + ".jsonl"
    for number in (0, 2):
        rows(folder, {**ROW, "id": str(number)}, name=name.format(number))
    assert "has 2 of the 3 files 'train-...-of-00003'" in refused(folder)
    assert len(read_samples(folder / name.format(0))) == 1
    rows(folder, {**ROW, "id": "1"}, name=name.format(1))
    assert [sample.id for sample in read_samples(folder)] == ["0", "1", "2"]


def test_columns_that_no_record_has_are_told(tmp_path: Path) -> None:
    path = rows(tmp_path / "data", {**ROW, "category": "trees"})
    assert columns_apply(path, PLAIN)
    assert columns_apply(path, SourceOptions(columns={"task": "category"}))
    assert not columns_apply(path, SourceOptions(columns={"task": "categroy"}))
    shown = CliRunner().invoke(app, ["data", str(path), "--set", "data.columns={task: categroy}"])
    assert "data.columns has no effect here: none of the first records has a column 'categroy'" in shown.stdout
    message = refused(
        rows(tmp_path / "other", {"label": "A"}), SourceOptions(columns={"answer": "lable"}, question="Q")
    )
    assert "did you mean 'label'? it has no field 'lable' of data.columns: correct that" in message


def test_a_split_and_a_conversion_are_two_commands(tmp_path: Path) -> None:
    path = rows(tmp_path / "data", ROW, ROW)
    asked = ["data", str(path), "--split", "50%", "--out", str(tmp_path / "a"), "--convert", str(tmp_path / "b")]
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 1
    assert "--split and --convert write two folders" in shown.stderr
    assert not (tmp_path / "a").exists()


def test_ids_that_look_like_those_of_repeats(tmp_path: Path) -> None:
    names = ("x", "x", "x (2)", "x (2)")
    path = rows(tmp_path / "data", *({"id": name, "question": f"Q{n}", "answer": "A"} for n, name in enumerate(names)))
    out = tmp_path / "out"
    shown = CliRunner().invoke(app, ["data", str(path), "--split", "75%", "--out", str(out)])
    assert shown.exit_code == 0, shown.output
    ids = [json.loads(line)["id"] for line in (out / "test.jsonl").read_text().splitlines()]
    assert len(set(ids)) == len(ids) == 3


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        (("3", "4"), "ask the same of the same pictures as another, answered else"),
        (("Red.", "red"), "differ from another one in digits, case and punctuation alone"),
        (("red", "red"), "repeat another one word for word"),
    ],
)
def test_another_number_is_another_answer(answers: tuple[str, str], text: str) -> None:
    tally = AnswerTally()
    for number, answer in enumerate(answers):
        tally.add(Sample(str(number), (Message("user", "How many?"), Message("assistant", answer))))
    assert [line for line in tally.warnings() if line.startswith("1 of 2")] == [f"1 of 2 samples {text}: such as '1'"]


def test_a_place_that_stands_twice_has_no_share() -> None:
    raw = {"model": {"path": "owner/m"}, "data": {"train": ["a", "a", "b"], "mix": {"a": "60%"}}}
    with pytest.raises(ConfigError, match="train names 'a' twice: name it once, and say here how often it is shown"):
        parse_config(raw)


@pytest.mark.parametrize("kind", ["binary_view", "list of binary_view", "list_view of binary"])
def test_bytes_of_another_layout_of_arrow(kind: str, tmp_path: Path) -> None:
    import pyarrow

    kinds = {
        "binary_view": pyarrow.binary_view(),
        "list of binary_view": pyarrow.list_(pyarrow.binary_view()),
        "list_view of binary": pyarrow.list_view(pyarrow.binary()),
    }
    pictures = [picture("0.png"), None, picture("1.png")]
    listed: list[Any] = pictures if kind == "binary_view" else [None if one is None else [one] for one in pictures]
    columns = {"question": ["Q"] * 3, "answer": ["A"] * 3, "images": pyarrow.array(listed, kinds[kind])}
    table = pyarrow.table(columns)
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as stream, pyarrow.ipc.new_file(stream, table.schema) as file:
        file.write_table(table)
    samples = read_samples(tmp_path / "a.arrow")
    found = [[image.read_bytes() for image in sample.images] for sample in samples]
    assert found == [[picture("0.png")], [], [picture("1.png")]]


def test_a_folder_of_pictures_that_is_a_link_leads_nowhere_else(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    write_pictures(secret)
    for name in ("0.png", "images/0.png"):
        path = rows(tmp_path / "data", {**ROW, "image": name})
        if not (tmp_path / "data/images").exists():
            (tmp_path / "data/images").symlink_to(secret)
        assert "leaves the data folder" in refused(path)
        allowed = SourceOptions(images=(secret,))
        assert read_samples(path, options=allowed)[0].images[0].resolve() == (secret / "0.png").resolve()


NEAR = {
    "photos/IMG_1.JPG": "; upper and lower case differ",
    "Photos/IMG_1.jpg": "; upper and lower case differ",
    "photos\\IMG_1.jpg": "; / stands between folders, not \\",
    "C:\\Users\\me\\photos\\img_1.jpg": "; / stands between folders, not \\",
    "photos/IMG_1.jpeg": "",
    "photos/IMG_1": "",
    "home/me/photos/IMG_1.jpg": "",
}


@pytest.mark.parametrize("name", NEAR)
def test_the_near_match_of_a_name_is_said(name: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "IMG_1.jpg").write_bytes(picture("0.png"))
    (tmp_path / "photos" / "IMG_2.jpg").write_bytes(picture("0.png"))
    message = refused(rows(tmp_path, {**ROW, "image": name}))
    assert f"write 'photos/IMG_1.jpg', which is there{NEAR[name]}" in message
    # A name is never read as another one's, and what lies outside is not told of.
    assert "no picture " in message
    for other in ("photos/IMG_3.jpg", "../photos/IMG_1.png", "photos"):
        assert "which is there" not in refused(rows(tmp_path, {**ROW, "image": other}))


def test_tables_of_other_marks(tmp_path: Path) -> None:
    for mark in "\t;":
        (tmp_path / "t.csv").write_text(f"question{mark}answer\nA, b?{mark}c, d\n")
        (sample,) = read_samples(tmp_path / "t.csv")
        assert (sample.question, sample.answer) == ("A, b?", "c, d")
    for name, mark in (("t.csv", "|"), ("t.tsv", ","), ("t.tsv", ";")):
        (tmp_path / name).write_text(f"question{mark}answer\nA{mark}b\n")
        assert f"has one column, 'question{mark}answer': its columns are separated by '{mark}'" in refused(
            tmp_path / name
        )


@pytest.mark.parametrize("order", ["pictures first", "texts first"])
def test_a_tar_whose_samples_are_torn_apart(order: str, tmp_path: Path) -> None:
    members = [
        (f"d/{number}.{ending}", content)
        for ending, content in (("png", picture("0.png")), ("json", json.dumps(ROW).encode()))
        for number in range(2)
    ]
    if order == "texts first":
        members = [*members[2:], *members[:2]]
    tar_of(members, tmp_path / "a.tar")
    message = refused(tmp_path / "a.tar")
    assert f"{members[0][0]!r} and {members[2][0]!r} are one sample, and others stand between them" in message
    assert "tar --sort=name" in message
    tar_of(sorted(members), tmp_path / "b.tar")
    assert [len(sample.images) for sample in read_samples(tmp_path / "b.tar")] == [1, 1]
    tar_of([("a.json", json.dumps(ROW).encode()), *sorted(members)], tmp_path / "c.tar")
    assert [len(sample.images) for sample in read_samples(tmp_path / "c.tar")] == [0, 1, 1]


def test_what_a_table_of_photos_needs_is_said(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(picture("0.png"))
    table, columns = tmp_path / "t.csv", SourceOptions(columns={"image": "file", "answer": "label"}, question="Q")
    table.write_text("file,label\n1.jpg,oak\n,\n")
    assert "data.columns={image: file, answer: label}, and what is asked of every picture" in refused(table)
    assert [sample.answer for sample in read_samples(table, options=columns)] == ["oak"]
    table.write_text("file,label,notes\n1.jpg,oak,x\n")
    assert "data.columns={image: file, answer: NAME}" in refused(table)
    table.write_text("file,label\n1.jpg,oak\n1.jpg,\n")
    assert "line 3 (id 't-2'): its 'label' is empty, which data.columns says is 'answer'" in refused(table, columns)
    table.write_text("1.jpg,oak\n")
    assert "has no header: its first line names a file, '1.jpg'" in refused(table, columns)
    table.write_text("sep=;\r\nfile;label\r\n1.jpg;oak\r\n")
    assert [sample.answer for sample in read_samples(table, options=columns)] == ["oak"]
    assert "data.columns={answer: caption}" in refused(rows(tmp_path / "d", {"image": "1.jpg", "caption": "a tree"}))


def turns(**marks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", **marks}]}


MARKED = [
    (turns(weight=0), "'weight' is 0"),
    (turns(loss=False), "'loss' is False"),
    ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A", "train": False}]}, "'train' is"),
    ({"prompt": "Q", "completion": "A", "label": False}, "'label' is False"),
]


@pytest.mark.parametrize(("record", "text"), MARKED, ids=lambda part: part if isinstance(part, str) else "")
def test_an_answer_that_is_not_to_be_learned_is_refused(record: dict[str, Any], text: str, tmp_path: Path) -> None:
    assert text in refused(rows(tmp_path, record))


NOT_READ = [
    (turns(reasoning_content="Well..."), "its 'reasoning_content' is not read, so that the answer would be learned"),
    (turns(tool_calls=[{"name": "look"}]), "its 'tool_calls' is not read"),
    ({**turns(), "tools": [{"name": "look"}]}, "it has 'tools', which is not read"),
    ({**turns(), "rejected_response": "B"}, "it has 'rejected_response', which is not read"),
    ({"query": "Q", "response": "A", "rejected_response": "B"}, "remove 'rejected_response' to learn them without it"),
]


@pytest.mark.parametrize(("record", "text"), NOT_READ, ids=lambda part: part if isinstance(part, str) else "")
def test_what_an_answer_does_not_stand_without_is_refused(record: dict[str, Any], text: str, tmp_path: Path) -> None:
    assert text in refused(rows(tmp_path, record))


@pytest.mark.parametrize(
    "record",
    [
        turns(weight=1),
        turns(reasoning_content="", tool_calls=[]),
        {**turns(), "tools": [], "rejected_response": None},
        turns(loss=None),
        {"prompt": "Q", "completion": "A", "label": True},
        {"question": "Q", "answer": "A", "system": ""},
        {"question": "Q", "answer": "A", "choices": ["A", "B"]},
        {"question": "Q", "answer": "A", "choices": []},
    ],
)
def test_an_answer_that_may_be_learned_is_learned(record: dict[str, Any], tmp_path: Path) -> None:
    (sample,) = read_samples(rows(tmp_path, record))
    assert sample.messages == (Message("user", "Q"), Message("assistant", "A"))


@pytest.mark.parametrize("answer", [1, "B", "(b)"])
def test_the_number_of_a_choice_is_no_answer(answer: Any, tmp_path: Path) -> None:
    record = {"question": "Which?", "choices": ["cat", "dog"], "answer": answer}
    error = refused(rows(tmp_path, record))
    assert f"its answer {answer!r} stands for one of 'choices', which the question does not show" in error
    assert "data.columns={answer: answer} learns" in error
    (as_it_stands,) = read_samples(rows(tmp_path, record), options=SourceOptions(columns={"answer": "answer"}))
    assert as_it_stands.messages[1].text == str(answer)
    (shown,) = read_samples(rows(tmp_path, {**record, "question": "Which?\nA. cat\nB. dog"}))
    assert shown.messages[1].text == str(answer)


def test_a_cell_may_hold_a_list_of_pictures(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    table = 'images,question,answer\n"[""0.png"", ""1.png""]",Q,A\n'
    (tmp_path / "a.csv").write_text(table, encoding="utf-8")
    (sample,) = read_samples(tmp_path / "a.csv")
    assert [found.name for found in sample.images] == ["0.png", "1.png"]
    assert "`images` is not JSON" in refused(rows(tmp_path, {**ROW, "images": '["0.png",'}))


def test_a_picture_as_base64_without_a_url(tmp_path: Path) -> None:
    text = base64.b64encode(picture("0.png")).decode()
    (sample,) = read_samples(rows(tmp_path, {**ROW, "image": text}))
    assert sample.images[0].read_bytes() == picture("0.png")


OBJECT = json.dumps(ROW)
WRITTEN = {
    "a.json": {
        f"{OBJECT}\n{OBJECT}\n": "rename it a.jsonl",
        f'{{"version": 1, "data": [{OBJECT}]}}': "write the list under 'data' as a file of its own",
        '{"question": {"0": "Q"}, "answer": {"0": "A"}}': "orient='records'",
        '{"messages": [{"role": "user", "content": "Q"}]}': "wrap it in [ ]",
        "{}": "wrap it in [ ]",
        '{"question": "Q",\n': "copy or write the file again, whole",
    },
    "a.jsonl": {
        f"[{OBJECT}]\n": "rename it a.json, or write each sample on one line",
        json.dumps([ROW], indent=1): "rename it a.json, or write each sample on one line",
        json.dumps(ROW, indent=1): "goes over several lines",
        f'{OBJECT}\n{{"question": ': "copy or write the file again, whole",
    },
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in WRITTEN.items() for text in texts])
def test_json_of_another_kind_than_its_ending_says(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert WRITTEN[name][text] in refused(tmp_path / name)


def test_columns_without_a_name_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer,,\nQ,A,,\n", encoding="utf-8")
    assert len(read_samples(tmp_path / "a.csv")) == 1


def test_a_tar_whose_json_names_other_pictures(tmp_path: Path) -> None:
    row = json.dumps({**ROW, "image": "coco/7.png"}).encode()
    tar_of([("0.json", row), ("0.png", picture("0.png"))], tmp_path / "a.tar")
    assert "has '0.png', and its .json says that 'image' is 'coco/7.png'" in refused(tmp_path / "a.tar")


def test_a_tar_with_two_samples_of_one_name(tmp_path: Path) -> None:
    row = json.dumps(ROW).encode()
    tar_of([("0.json", row), ("0.json", row)], tmp_path / "a.tar")
    assert "is there twice in one sample" in refused(tmp_path / "a.tar")


def test_names_in_a_tar_of_the_folder_itself(tmp_path: Path) -> None:
    tar_of([("./0.json", json.dumps(ROW).encode())], tmp_path / "a.tar")
    assert [sample.id for sample in read_samples(tmp_path / "a.tar")] == ["0"]
