"""A path that comes out of a file stays inside its folder, in every reader that follows one."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from striate.artifacts import Prediction, write_lines
from striate.data.reading import read_samples
from striate.errors import DataError, ModelError
from striate.stages.report import report
from striate.storage.atomic import write_text
from striate.storage.fingerprints import earlier_fingerprint, fingerprint
from striate.storage.inside import inside
from striate.tasks.packs.reader import read_pack
from striate.tasks.packs.sources import parse_source, read_source

NAMES = {
    "up": "../secret.jpg",
    "far up": "a/../../../secret.jpg",
    "absolute": "ROOT/secret.jpg",
    "by link": "link.jpg",
    "by a linked folder": "linked/secret.jpg",
    "a link to itself": "loop.jpg",
    "NUL": "a\0.jpg",
    "base64": "data:image/jpeg;base64," + "A" * 4000,
    "base64 with slashes": "data:image/jpeg;base64," + "0123456789/" * 400,
    "half a character": "\ud800.jpg",
    "blank": " ",
}
SECRET = Image.new("RGB", (8, 8), (1, 2, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with links that lead out, beside a picture that nobody may read."""
    SECRET.save(tmp_path / "secret.jpg")
    folder = tmp_path / "folder"
    folder.mkdir()
    links(folder, tmp_path)
    return folder


def links(folder: Path, root: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "link.jpg").symlink_to(root / "secret.jpg")
    (folder / "linked").symlink_to(root)
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")


@pytest.mark.parametrize("kind", [kind for kind in NAMES if not kind.startswith("base64")])
def test_nothing_leads_out(kind: str, folder: Path) -> None:
    name = NAMES[kind].replace("ROOT", str(folder.parent))
    with pytest.raises(DataError, match="sample 's': picture ") as caught:
        inside(folder, name, what="sample 's': picture", kind="data folder")
    first, allowed, _ = str(caught.value).split("\n")
    assert len(first) <= 300
    assert first.isprintable()
    assert f"a path inside {folder}" in allowed


def test_what_lies_inside_is_found_by_whatever_way(folder: Path) -> None:
    (folder / "images").mkdir()
    (folder / "images" / "ä b.jpg").symlink_to(folder / "linked")
    (folder / "here").symlink_to(folder / "images")
    for name in ("images/a.jpg", "./images/../a.jpg", "here/a.jpg", str(folder / "a.jpg"), "not yet/there.jpg"):
        assert inside(folder, name, what="picture") == folder / name
    (folder.parent / "alias").symlink_to(folder)
    assert inside(folder.parent / "alias", "a.jpg", what="picture") == folder.parent / "alias" / "a.jpg"
    assert inside(folder, "link.jpg", what="picture", also=[folder.parent]) == folder / "link.jpg"


@given(
    st.text(max_size=30) | st.lists(st.sampled_from(["..", ".", "a", "/", "\\", "~", "link"]), max_size=6).map("/".join)
)
def test_any_text_is_a_path_inside_or_refused(text: str) -> None:
    root = Path("/nowhere/folder")
    try:
        path = inside(root, text, what="picture")
    except DataError:
        return
    assert path.resolve().is_relative_to(root)


def test_a_relative_folder_is_that_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for work in ("one", "two"):
        (tmp_path / work / "run").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / work)
        assert inside(Path("run"), "a.jpg", what="picture") == Path("run/a.jpg")


def test_errors_are_of_the_class_that_is_asked_for(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"shard '../x' leaves the model folder"):
        inside(folder, "../x", what="shard", kind="model folder", error_class=ModelError)


def rows(name: str, folder: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "noise"}]
    write_text(folder / "train.json", json.dumps([{"id": "7", "image": name, "conversations": turns}]))
    item = {"id": "7", "image": name, "question": "What?", "answers": ["noise"], "metric": "exact"}
    write_text(folder / "test.jsonl", json.dumps(item))


@pytest.mark.parametrize("kind", [kind for kind in NAMES if kind not in ("half a character", "blank")])
def test_data_and_packs(kind: str, folder: Path) -> None:
    rows(NAMES[kind].replace("ROOT", str(folder.parent)), folder)
    # Training data may hold pictures as text; whether they are any is seen where they are decoded.
    for read in (read_pack,) if kind.startswith("base64") else (read_samples, read_pack):
        with pytest.raises(
            DataError, match=r"(leaves the data folder|is no file name|no picture 'data:image)"
        ) as caught:
            read(folder)
        assert len(str(caught.value).split("\n")[0]) <= 300


# The files of each published benchmark that names pictures, with NAME in the place of one.
BENCHMARKS: dict[str, dict[str, object]] = {
    "pope": {
        f"coco_pope_{kind}.json": {"question_id": 1, "image": "NAME", "text": "?", "label": "yes"}
        for kind in ("random", "popular", "adversarial")
    },
    "textvqa": {
        "TextVQA_0.5.1_val.json": {
            "data": [{"image_id": "NAME", "question": "?", "question_id": 1, "answers": ["a"] * 10}]
        }
    },
    "gqa": {"testdev_balanced_questions.json": {"1": {"imageId": "NAME", "question": "?", "answer": "a"}}},
    "docvqa": {"val_v1.0.json": {"data": [{"questionId": 1, "question": "?", "image": "NAME", "answers": ["a"]}]}},
    "ocrvqa": {
        "dataset.json": {"NAME": {"split": 3, "questions": ["?"], "answers": ["a"], "imageURL": "http://x/y.jpg"}}
    },
    "scienceqa": {
        "problems.json": {"1": {"image": "NAME", "question": "?", "choices": ["a", "b"], "answer": 0}},
        "pid_splits.json": {"test": ["1"]},
    },
    "scienceqa of a strange number": {
        "problems.json": {"..": {"image": "../NAME", "question": "?", "choices": ["a", "b"], "answer": 0}},
        "pid_splits.json": {"test": [".."]},
    },
    "seed-bench": {
        "SEED-Bench.json": {
            "questions": [
                {"data_type": "image", "data_id": "NAME", "question_id": 1, "question": "?", "answer": "A"}
                | {f"choice_{letter}": letter for letter in "abcd"}
            ]
        }
    },
    "refcoco": {
        "refcoco_val.jsonl": {"image": "NAME", "sent": "it", "bbox": [0, 0, 1, 1], "width": 8, "height": 8},
    },
    "refcoco of refer": {
        "refs(unc).json": [
            {"split": "val", "image_id": 1, "ann_id": 1, "ref_id": 1, "sentences": [{"sent_id": 1, "sent": "it"}]}
        ],
        "instances.json": {
            "annotations": [{"id": 1, "bbox": [0, 0, 1, 1]}],
            "images": [{"id": 1, "width": 8, "height": 8, "file_name": "NAME"}],
        },
    },
}
PICTURES = {
    "pope": "val2014",
    "textvqa": "train_images",
    "gqa": "images",
    "docvqa": ".",
    "ocrvqa": "images",
    "scienceqa": "images/test/1",
    "scienceqa of a strange number": "images/test",
    "seed-bench": "SEED-Bench-image",
    "refcoco": "train2014",
    "refcoco of refer": "train2014",
}


@pytest.mark.parametrize("way", ["up", "absolute", "by link"])
@pytest.mark.parametrize("name", BENCHMARKS)
def test_published_benchmarks_name_no_picture_elsewhere(name: str, way: str, folder: Path) -> None:
    pictures = folder / PICTURES[name]
    links(pictures, folder.parent) if pictures != folder else None
    up = os.path.relpath(folder.parent / "secret.jpg", pictures)
    given_name = {"up": up, "absolute": str(folder.parent / "secret.jpg"), "by link": "link.jpg"}[way]
    if name in ("textvqa", "gqa", "ocrvqa"):
        given_name = given_name.removesuffix(".jpg")
    for file, content in BENCHMARKS[name].items():
        write_text(folder / file, json.dumps(content).replace("NAME", given_name))
    with pytest.raises(DataError, match=r"picture '.*' leaves the folder"):
        read_source(parse_source(f"{name.split()[0]}:{folder}"))


def test_a_linked_folder_of_pictures_is_the_layout_of_a_person(folder: Path) -> None:
    coco = folder.parent / "coco"
    coco.mkdir()
    SECRET.save(coco / "a.jpg")
    (folder / "val2014").symlink_to(coco)
    for file, content in BENCHMARKS["pope"].items():
        write_text(folder / file, json.dumps(content).replace("NAME", "a.jpg"))
    assert read_source(parse_source(f"pope:{folder}")).items[0].image == folder / "val2014" / "a.jpg"


@pytest.mark.parametrize("index", ["../../out", "ROOT/out"])
@pytest.mark.parametrize("read_only", [True, False])
def test_mmbench_writes_no_picture_elsewhere(index: str, read_only: bool, folder: Path) -> None:
    index = index.replace("ROOT", str(folder.parent))
    picture = base64.b64encode((folder.parent / "secret.jpg").read_bytes()).decode()
    head, row = ("index", "question", "A", "B", "answer", "image"), (index, "?", "a", "b", "A", picture)
    write_text(folder / "mmbench_dev_20230712.tsv", "\t".join(head) + "\n" + "\t".join(row) + "\n")
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(DataError, match=r"benchmark mmbench: .*: picture '.*' leaves the folder"):
        read_source(parse_source(f"mmbench:{folder}"), pictures=None if read_only else folder / "eval" / "pictures")
    assert sorted(folder.parent.rglob("*")) == before


def test_a_linked_folder_in_a_run_takes_no_pictures_elsewhere(folder: Path) -> None:
    pictures = folder / "eval" / "pictures"
    pictures.mkdir(parents=True)
    (pictures / "mmbench").symlink_to(folder.parent)
    with pytest.raises(DataError, match="the folder for pictures 'mmbench' leaves the folder"):
        read_source(parse_source(f"mmbench:{folder}"), pictures=pictures)


@pytest.mark.parametrize("name", ["../../out", "ROOT/out"])
def test_mmmu_writes_no_picture_elsewhere(name: str, folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    row = {"id": name.replace("ROOT", str(folder.parent)), "question": "<image 1>?", "options": "['a', 'b']"}
    row |= {"answer": "A", "question_type": "multiple-choice", "image_1": {"bytes": b"x", "path": "a"}}
    parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "validation-0.parquet")
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(DataError, match=r"benchmark mmmu: .*: picture '.*' leaves the folder"):
        read_source(parse_source(f"mmmu:{folder}"), pictures=folder / "eval" / "pictures")
    assert sorted(folder.parent.rglob("*")) == before


def strangers_run(run: Path, image: str, packs: list[str], content: str = "") -> str:
    """The page of a run folder whose one prediction names `image`."""
    prediction = Prediction(
        id="1", pack="pack", task="t", metric="exact", question="?", image=image, score=1.0, picture=content
    )
    write_lines(run / "eval" / "start.predictions.jsonl", [prediction])
    write_text(
        run / "config.yaml",
        json.dumps({"model": {"path": "m"}, "data": {"train": ["d"]}, "evaluate": {"packs": packs}}),
    )
    return report(run).read_text(encoding="utf-8")


@pytest.fixture
def shows(tmp_path: Path) -> Callable[..., bool]:
    """Whether the report of a run shows a picture, by the name that a prediction has for it."""

    def shows(image: str, packs: list[str], content: str = "") -> bool:
        page = strangers_run(tmp_path / "run", image, packs, content)
        return "data:image/png;base64,iVBOR" in page

    return shows


@pytest.mark.parametrize("way", ["up", "absolute", "by link", "by a linked folder"])
def test_a_strangers_run_shows_no_picture_of_elsewhere(way: str, tmp_path: Path, shows: Callable[..., bool]) -> None:
    SECRET.save(tmp_path / "secret.jpg")
    links(tmp_path / "run", tmp_path)
    image = NAMES[way].replace("ROOT", str(tmp_path))
    assert not shows(image, [])
    assert not shows("secret.jpg", [str(tmp_path)]), "a pack that the stranger names"
    assert not shows("secret.jpg", [f"pope:{tmp_path}", "a" * 5000, "a\0b:c"], content="0" * 16)


def test_a_run_shows_its_own_pictures_and_those_that_were_asked(tmp_path: Path, shows: Callable[..., bool]) -> None:
    SECRET.save(tmp_path / "secret.jpg")
    content = fingerprint(tmp_path / "secret.jpg")
    assert shows("secret.jpg", [str(tmp_path)], content)
    assert shows("secret.jpg", [str(tmp_path)], earlier_fingerprint(tmp_path / "secret.jpg"))
    assert shows(str(tmp_path / "secret.jpg"), [f"pope:{tmp_path}"], content)
    (tmp_path / "run" / "eval" / "pictures").mkdir(parents=True)
    SECRET.save(tmp_path / "run" / "eval" / "pictures" / "1.jpg")
    assert shows("eval/pictures/1.jpg", [])
    assert shows(str(tmp_path / "run" / "eval" / "pictures" / "1.jpg"), [])
