"""The built-in data: easy-VQA from a made-up package, prose from this Python's own documentation, config names."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from striate.data.pictures import check_pictures
from striate.data.reading import read_samples
from striate.demo import easy_vqa
from striate.demo.easy_vqa import TASKS, prepare_easy_vqa, task_of
from striate.demo.language_reference import prepare_language_reference
from striate.demo.places import locate_data, locate_model
from striate.errors import ConfigError, DataError
from striate.progress import Silent
from striate.tasks.packs.reader import read_pack

PICTURES = 8
ANSWERS = ["circle", "red", "yes", "no"]


def make_source(folder: Path) -> Path:
    for split in ("train", "test"):
        (folder / split / "images").mkdir(parents=True)
        rows: list[list[Any]] = []
        for picture in range(PICTURES):
            Image.new("RGB", (8, 8), (picture, 0, 0)).save(folder / split / "images" / f"{picture}.png")
            for answer in ANSWERS:
                rows += [[f"is {split} {picture} {answer} {n}?", answer, picture] for n in range(3)]
        # A picture without a question of every task does not train.
        rows.append([f"what is {split} 99?", "red", PICTURES])
        Image.new("RGB", (8, 8)).save(folder / split / "images" / f"{PICTURES}.png")
        (folder / split / "questions.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(easy_vqa, "TRAIN_SAMPLES", 6)
    monkeypatch.setattr(easy_vqa, "HELD_OUT", 2)
    monkeypatch.setattr(easy_vqa, "TEST_PICTURES", 5)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.usefixtures("small")
def test_easy_vqa_is_a_training_set(tmp_path: Path) -> None:
    folder = prepare_easy_vqa(make_source(tmp_path / "source"), tmp_path / "easy-vqa")
    samples = read_samples(folder)
    assert len(samples) == 6
    assert check_pictures({path: sample.id for sample in samples for path in sample.images}) == "6 pictures"
    for sample in samples:
        number = sample.images[0].stem.partition("-")[2]
        asked = [message.text for message in sample.messages if message.role == "user"]
        answers = [message.text for message in sample.messages if message.role == "assistant"]
        assert all(f"s train {number} {answer} " in text for text, answer in zip(asked, answers, strict=True))
        assert all(text.removeprefix("<image>\n").startswith("Is ") for text in asked)
        assert [text.startswith("<image>\n") for text in asked] == [True, False, False]
        assert {task_of(answer) for answer in answers} == {"shape", "colour", "presence"}
        assert Image.open(sample.images[0]).getpixel((0, 0)) == (int(number), 0, 0)


@pytest.mark.usefixtures("small")
def test_easy_vqa_holds_out_more_of_the_same_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path / "source")
    folder = prepare_easy_vqa(source, tmp_path / "easy-vqa")
    train, held_out = read_samples(folder), read_samples(folder / "held_out.json")
    assert len(held_out) == 2
    assert {path for one in train for path in one.images}.isdisjoint(path for one in held_out for path in one.images)
    assert {task_of(message.text) for message in held_out[0].messages if message.role == "assistant"} == set(TASKS)
    # What trains is what trained before samples were held out.
    monkeypatch.setattr(easy_vqa, "HELD_OUT", 0)
    alone = prepare_easy_vqa(source, tmp_path / "alone")
    assert (alone / "train.json").read_bytes() == (folder / "train.json").read_bytes()
    assert (alone / "test.jsonl").read_bytes() == (folder / "test.jsonl").read_bytes()
    monkeypatch.setattr(easy_vqa, "HELD_OUT", 2)
    monkeypatch.setattr("striate.demo.places.fetch", lambda package, progress: source)
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    place = locate_data("builtin:easy-vqa/held_out.json", Silent())
    assert read_samples(place)[0].messages == held_out[0].messages


@pytest.mark.usefixtures("small")
def test_easy_vqa_is_a_held_out_pack(tmp_path: Path) -> None:
    folder = prepare_easy_vqa(make_source(tmp_path / "source"), tmp_path / "easy-vqa")
    pack = read_pack(folder)
    assert Counter(item.task for item in pack.items) == {"shape": 5, "colour": 5, "presence": 5}
    # A question of every task about each picture, side by side.
    asked = [(item.image, item.task) for item in pack.items]
    pictures = [image for image, _ in asked[::3]]
    assert len(set(pictures)) == 5
    assert [image for image, _ in asked] == [image for image in pictures for _ in range(3)]
    assert all({task for _, task in asked[first : first + 3]} == set(TASKS) for first in range(0, 15, 3))
    for item in pack.items:
        assert item.image is not None
        assert item.image.name.startswith("test-")
        assert "test" in item.question
        assert task_of(item.answers[0]) == item.task
    assert len({item.question for item in pack.items}) == 15


@pytest.mark.usefixtures("small")
def test_easy_vqa_follows_from_its_seed_and_is_made_once(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    one = contents(prepare_easy_vqa(source, tmp_path / "a"))
    assert contents(prepare_easy_vqa(source, tmp_path / "b")) == one
    assert contents(prepare_easy_vqa(source, tmp_path / "c", seed=1)) != one
    assert prepare_easy_vqa(tmp_path / "gone", tmp_path / "a") == tmp_path / "a"


@pytest.mark.usefixtures("small")
def test_easy_vqa_of_a_broken_package_leaves_nothing(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    (source / "train" / "images" / "0.png").unlink()
    for number in range(PICTURES):
        (source / "test" / "images" / f"{number}.png").unlink()
    with pytest.raises(DataError, match=r"easy-VQA is damaged: .*\.png is missing"):
        prepare_easy_vqa(source, tmp_path / "easy-vqa")
    (source / "train" / "questions.json").write_text("[[")
    with pytest.raises(DataError, match=r"easy-VQA is damaged: .*questions\.json is missing or can't be read"):
        prepare_easy_vqa(source, tmp_path / "easy-vqa")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_language_reference_is_prose(tmp_path: Path) -> None:
    pack = read_pack(prepare_language_reference(tmp_path / "language-reference"))
    assert len(pack.items) == 16
    assert {item.metric for item in pack.items} == {"perplexity"}
    for item in pack.items:
        assert 400 <= len(item.text) <= 901
        assert item.text.endswith(".")
        assert "\n" not in item.text
        letters = sum(letter.isalpha() or letter == " " for letter in item.text)
        assert letters / len(item.text) > 0.85
    assert len({item.text for item in pack.items}) == 16


def test_language_reference_trains_on_other_passages_than_it_asks(tmp_path: Path) -> None:
    folder = prepare_language_reference(tmp_path / "language-reference")
    samples = read_samples(folder)
    asked = {item.text for item in read_pack(folder).items}
    assert len(samples) >= 20
    assert not {turn.text for sample in samples for turn in sample.messages} & asked
    assert not any(sample.images for sample in samples)


def test_language_reference_follows_from_its_seed(tmp_path: Path) -> None:
    one = contents(prepare_language_reference(tmp_path / "a"))
    assert contents(prepare_language_reference(tmp_path / "b")) == one
    assert contents(prepare_language_reference(tmp_path / "c", seed=1)) != one


def test_python_without_its_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError) as caught:
        prepare_language_reference(tmp_path / "a")
    assert str(caught.value).startswith("this Python installation has no pydoc_data")
    assert "evaluate.packs" in caught.value.next_step
    assert list(tmp_path.iterdir()) == []


def test_names_in_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert locate_data("some/folder", Silent()) == Path("some/folder")
    assert locate_data("~/folder", Silent()) == tmp_path / "home" / "folder"
    place = locate_data("builtin:language-reference", Silent())
    assert place == tmp_path / "data-5" / "language-reference"
    assert (place / "test.jsonl").is_file()
    assert locate_model(str(tmp_path), Silent()) == str(tmp_path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("builtin:easy-vqua", "did you mean 'easy-vqa'? or give a folder"), ("builtin", "or give a folder")],
)
def test_unknown_pack(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        locate_data(name, Silent())
    assert str(caught.value) == (
        f"unknown built-in pack {name!r}\n  allowed: builtin:easy-vqa, builtin:language-reference\n  next:    {hint}"
    )
