"""`striate data` shows what was understood, splits off a test pack that shares no picture, and writes our own form."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from striate.cli.app import app
from striate.data.overview.source_overview import look_at
from striate.data.pictures import ORDINARY
from striate.data.reading import read_samples
from striate.data.samples import Message, Sample
from striate.data.sources.source_options import PLAIN
from striate.errors import DataError
from striate.tasks.packs.answer_metrics import Question, item_row, metric_of
from striate.tasks.packs.pack_split import parted
from striate.tasks.packs.reader import read_pack


def done(*arguments: object) -> str:
    shown = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert shown.exit_code == 0, shown.output
    return shown.stdout


def refused(*arguments: object) -> str:
    shown = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert shown.exit_code == 1, shown.output
    return shown.stderr


def chat(name: str, question: str, answer: str, task: str = "", image: str = "") -> dict[str, Any]:
    row = {"id": name, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}
    return row | ({"task": task} if task else {}) | ({"image": image} if image else {})


def write(folder: Path, *rows: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Training data with one of everything that is odd."""
    folder = tmp_path / "odd"
    folder.mkdir()
    chance = random.Random(0)
    noise = Image.frombytes("RGB", (40, 30), chance.randbytes(40 * 30 * 3)).resize((400, 300))
    noise.save(folder / "a.png")
    noise.save(folder / "alike.jpg")
    shutil.copy(folder / "a.png", folder / "copy.png")
    Image.frombytes("L", (64, 48), chance.randbytes(64 * 48)).save(folder / "grey.png")
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:2000])
    return write(
        folder,
        chat("1", "<image>\nWhat?", "noise", "t", "a.png"),
        chat("2", "<image>\nWhat?", "noise", "t", "a.png"),
        chat("3", "<image>\nWhat!", "noise", "t", "copy.png"),
        chat("4", "<image>\nWhat ?", "noise", "t", "a.png"),
        chat("5", "<image>\nWhat?", "a cat", "u", "a.png"),
        chat("5", "<image>\nHow many?", "N/A", "u", "grey.png"),
        chat("7", "<image>\nWhere?", "here", "u", "broken.png"),
        chat("8", "<image>\nWhen?", "now", "u", "alike.jpg"),
        chat("9", "Why?", "", "u"),
        {"id": "10", "text": "nothing"},
    )


def test_everything_that_is_understood_and_odd_is_shown(odd: Path) -> None:
    shown = done(odd).splitlines()
    lines = shown[: shown.index("")]
    assert lines == [
        f"files     {odd}/train.json",
        "samples   8: 8 with pictures, 0 of text",
        "answers   8, all of them learned",
        "pictures  5: 4 PNG, 1 JPEG; modes 4 RGB, 1 L",
        "sizes     width 64 to 400, median 400; height 48 to 300, median 300 pixels",
        "tasks     t 4, u 4",
        "REFUSED   2 records, such as:",
        *(line for line in lines if line.startswith("          ") and "sample number" in line),
        "warning   1 of 5 pictures that were decoded can't be used",
        "warning   1 of 5 pictures hold the same bytes as another one",
        "warning   1 of 5 pictures that were compared look like another one",
        "warning   1 of 8 samples answer with what stands for nothing, such as n/a or none: such as '5'",
        "warning   1 of 8 samples repeat another one word for word: such as '2'",
        "warning   1 of 8 samples differ from another one in digits, case and punctuation alone: such as '4'",
        "warning   1 of 8 samples ask the same of the same pictures as another, answered else: such as '5'",
        "warning   1 of 8 samples share their id with another: such as '5'",
        "warning   task 't': 4 of 4 answers are 'noise'",
        *(line for line in lines if line.startswith("          ") and "broken.png" in line),
    ]
    assert any("an empty assistant turn" in line for line in lines)
    told = json.loads(done(odd, "--json", "--samples", "2"))
    assert (told["samples"], told["refused"], len(told["shown"])) == (8, 2, 2)
    assert told["shown"][0]["pieces"][-1]["learned"] is True


def test_what_is_learned_shows_without_colour_and_with(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    plain = done(odd)
    assert "\nuser: <image>\\nWhat?\nassistant: [[noise]]\n" in plain
    assert "\x1b" not in plain


def test_a_table_is_read_by_its_columns(saved_pack: Path, tmp_path: Path) -> None:
    shutil.copytree(saved_pack / "images", tmp_path / "photos")
    with (tmp_path / "labels.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["file", "label"])
        rows.writerows([f"photos/square_{number:02d}.png", ["red", "blue"][number % 2]] for number in range(12))
    options = ("--set", "data.columns={image: file, answer: label}", "--set", "data.question=Which colour?")
    told = done(tmp_path / "labels.csv", *options)
    assert "samples   12: 12 with pictures, 0 of text" in told
    assert "user: <image>\\nWhich colour?" in told
    done(tmp_path / "labels.csv", *options, "--split", "30%", "--out", tmp_path / "split")
    assert {item.metric for item in read_pack(tmp_path / "split").items} == {"exact"}
    assert "file" in refused(tmp_path / "labels.csv")


def test_a_split_is_a_pack_and_training_data_that_share_no_picture(saved_pack: Path, tmp_path: Path) -> None:
    out = tmp_path / "split"
    said = done(saved_pack, "--split", "30%", "--out", out)
    items, trained = read_pack(out).items, read_samples(out)
    assert f"use it    --set 'data.train=[{out}]' --set 'evaluate.packs=[{out}]'" in said
    assert len(items) + len(trained) == len(read_samples(saved_pack))
    assert {item.image for item in items}.isdisjoint({image for sample in trained for image in sample.images})
    told = json.loads(done(saved_pack, "--split", "30%", "--out", tmp_path / "again", "--json"))
    assert (told["train"], told["test"]) == (len(trained), len(items))
    for name in ("train.jsonl", "test.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_nothing_is_half_written(odd: Path, saved_pack: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    assert "can't read picture" in refused(odd, "--convert", out)
    assert "an empty assistant turn" in refused(odd, "--split", "20%", "--out", out)
    rows = json.loads((odd / "train.json").read_text())[:8]
    write(odd, *rows)
    assert "can't read picture" in refused(odd, "--convert", out)
    assert "can't read picture" in refused(odd, "--split", "20%", "--out", out)
    assert "a share of 99% would take all" in refused(saved_pack, "--split", "99%", "--out", out)
    for share in ("5", "0%", "100%", "x"):
        assert "is no share" in refused(saved_pack, "--split", share, "--out", out)
    assert "--split and --out go together" in refused(saved_pack, "--split", "5%")
    assert [path.name for path in tmp_path.iterdir()] == ["odd"]
    assert "exists already" in refused(saved_pack, "--convert", odd)
    assert "left out  1 that can't be used" in done(odd, "--convert", out, "--set", "data.broken=skip")
    assert len(read_samples(out)) == 7
    write(odd, *rows, chat("9", "Why?", "", "u"))
    skipping = ("--set", "data.broken=skip", "--split", "20%", "--out", tmp_path / "parted")
    # All but grey.png show copies of one picture, so that it alone is the test.
    assert "left out  2 that can't be used" in done(odd, *skipping)
    assert len(read_samples(tmp_path / "parted")) + len(read_pack(tmp_path / "parted").items) == 7


def test_what_is_converted_reads_the_same(saved_pack: Path, tmp_path: Path) -> None:
    done(saved_pack, "--convert", tmp_path / "ours")
    before, after = read_samples(saved_pack), read_samples(tmp_path / "ours")
    assert [(one.id, one.messages, one.task) for one in before] == [(one.id, one.messages, one.task) for one in after]
    for one, other in zip(before, after, strict=True):
        assert [image.read_bytes() for image in one.images] == [image.read_bytes() for image in other.images]
    assert look_at(tmp_path / "ours", PLAIN, ORDINARY).pictures.copies == 0


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.integers(0, 11), max_size=2), min_size=4, max_size=24), st.floats(0.05, 0.5), st.integers(0, 9)
)
def test_no_picture_is_on_both_sides(saved_pack: Path, shown: list[list[int]], share: float, seed: int) -> None:
    pictures = sorted((saved_pack / "images").iterdir())
    samples = [
        Sample(
            str(index),
            (Message("user", f"q{index % 5}"), Message("assistant", "a")),
            tuple(pictures[one] for one in numbers),
        )
        for index, numbers in enumerate(shown)
    ]
    # Samples that all share pictures can't be parted.
    with suppress(DataError):
        check_sides(samples, *parted(samples, share, seed))
        assert parted(samples, share, seed) == parted(samples, share, seed)


def check_sides(samples: list[Sample], train: list[Sample], test: list[Sample]) -> None:
    assert sorted(int(one.id) for one in (*train, *test)) == list(range(len(samples)))
    assert train
    assert test
    sides = [{image.read_bytes() for one in side for image in one.images} for side in (train, test)]
    assert not sides[0] & sides[1]
    said = [{one.messages for one in side if not one.images} for side in (train, test)]
    assert not said[0] & said[1]


ASKED = "<image>\nWhich?\nA. a cat\nB. a dog"
METRICS: dict[str, tuple[str, Sequence[str], str, Callable[[dict[str, Any]], bool]]] = {
    "yes or no": ("<image>\nIs it?", ("Yes.", "no"), "yes_no", lambda row: row["answers"] == ["yes"]),
    "letters": (ASKED, ("A", "(B)"), "letter", lambda row: row["choices"] == ["a cat", "a dog"]),
    "letters of no list": ("<image>\nWhich?", ("A", "B"), "exact", lambda row: row["answers"] == ["A"]),
    "boxes": ("<image>\nWhere?", ("[0, 0, 0.5, 1]", "[0.1, 0.2, 0.3, 0.4]"), "iou50", lambda row: "size" not in row),
    "words": ("<image>\nWhat?", ("red", "a red cat"), "exact", lambda row: row["question"] == "<image>\nWhat?"),
    "sentences": ("<image>\nTell.", ("red", "There is a cat on the mat and it is red."), "anls", bool),
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics_follow_from_the_answers(name: str) -> None:
    asked, answers, metric, right = METRICS[name]
    questions = [
        Question.of(Sample("s", (Message("user", asked), Message("assistant", answer)), (Path("a.png"),)))
        for answer in answers
    ]
    assert metric_of(questions) == metric
    assert right(item_row(questions[0], metric, "t"))


def test_data_that_comes_with_striate_is_data_too(pack_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from striate.demo import places

    monkeypatch.setattr(places, "fetch", lambda package, progress: pack_dir)
    monkeypatch.setattr(places, "prepare_easy_vqa", lambda source, home, progress: source)
    shown = CliRunner().invoke(app, ["data", "builtin:easy-vqa", "--samples", "0"])
    assert shown.exit_code == 0, shown.output
    assert "samples   13: " in shown.stdout
    wrong = CliRunner().invoke(app, ["data", "builtin:easy-vqs"])
    assert "unknown built-in pack 'builtin:easy-vqs'" in wrong.stderr
    assert "did you mean 'easy-vqa'?" in wrong.stderr


def test_other_data_than_source_is_refused(saved_pack: Path) -> None:
    assert "--set data.train names other data than SOURCE" in refused(saved_pack, "--set", "data.train=[other]")
