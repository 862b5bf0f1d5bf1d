"""Benchmarks with pictures, on tiny copies of their published files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from published_kit import (
    BUILDERS,
    docvqa,
    gqa,
    lines,
    mmbench,
    mme,
    mmmu,
    ocrvqa,
    pope,
    refcoco,
    scienceqa,
    seed_bench,
    tdiuc,
    textvqa,
    write,
)

from striate.errors import DataError
from striate.tasks.benchmarks import BENCHMARKS
from striate.tasks.benchmarks.formats.prompt_wording import LETTER, SHORT
from striate.tasks.packs.items import Item
from striate.tasks.packs.sources import earlier_release_fingerprint, parse_source, read_source


def read(name: str, folder: Path, **options: Any) -> list[Item]:
    return list(read_source(parse_source(f"{name}:{folder}"), pictures=folder / "unpacked", **options).items)


@pytest.mark.parametrize("name", BUILDERS)
def test_every_item_has_its_picture_and_is_right_for_its_metric(name: str, tmp_path: Path) -> None:
    BUILDERS[name](tmp_path)
    items = read(name, tmp_path)
    assert items
    assert {item.pack for item in items} == {name}
    assert len({item.id for item in items}) == len(items)
    for item in items:
        assert item.image is not None
        for path in item.images:
            Image.open(path).load()


@pytest.mark.parametrize("name", BUILDERS)
def test_a_folder_without_the_files_names_them(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(name, tmp_path)
    assert str(caught.value).startswith(f"benchmark {name}: {tmp_path} has no ")
    assert f"allowed: the published files: {BENCHMARKS.get(name).layout[0]}" in str(caught.value)
    assert str(caught.value).endswith(f"next:    they come from {BENCHMARKS.get(name).source}")
    with pytest.raises(DataError, match="is not a folder"):
        read(name, tmp_path / "nowhere")


@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in ("mmbench", "mmmu", "mme")])
def test_missing_pictures_are_counted(name: str, tmp_path: Path) -> None:
    BUILDERS[name](tmp_path)
    found = read(name, tmp_path)
    assert found[0].image
    found[0].image.unlink()
    with pytest.raises(DataError, match=rf"benchmark {name}: no picture .*are missing\)"):
        read(name, tmp_path)


def test_textvqa(tmp_path: Path) -> None:
    textvqa(tmp_path)
    (item,) = read("textvqa", tmp_path)
    assert (item.id, item.metric, item.answers) == ("34602", "vqa", ("nokia",) * 10)
    assert item.question == f"what brand is it?\n{SHORT}"
    (item,) = read("textvqa-ocr", tmp_path)
    assert item.question == f"what brand is it?\nReference OCR token: NOKIA, 10:30\n{SHORT}"


def test_docvqa_of_both_releases(tmp_path: Path) -> None:
    docvqa(tmp_path)
    (item,) = read("docvqa", tmp_path)
    assert (item.metric, item.answers) == ("anls", ("1/8/93", "8 Jan 93"))
    (tmp_path / "documents").rename(tmp_path / "spdocvqa_images")
    (tmp_path / "val_v1.0.json").rename(tmp_path / "val_v1.0_withQT.json")
    assert read("docvqa", tmp_path)[0].image == tmp_path / "spdocvqa_images" / "pybv0228_81.png"


def test_ocrvqa_takes_the_test_split_only(tmp_path: Path) -> None:
    ocrvqa(tmp_path)
    items = read("ocrvqa", tmp_path)
    assert [(item.id, item.answers, item.metric) for item in items] == [
        ("1588-0", ("Jane Doe",), "containment"),
        ("1588-1", ("No",), "containment"),
    ]


def test_tdiuc_and_gqa(tmp_path: Path) -> None:
    tdiuc(tmp_path)
    gqa(tmp_path)
    (item,) = read("tdiuc", tmp_path)
    assert (item.id, item.metric, item.answers, item.task) == ("color/7", "exact", ("black",), "tdiuc")
    (item,) = read("gqa", tmp_path)
    assert (item.id, item.question, item.answers) == ("201307251", f"Is it overcast?\n{SHORT}", ("no",))


def test_refcoco_from_the_pickle_and_from_lines(tmp_path: Path) -> None:
    refcoco(tmp_path)
    (item,) = read("refcoco", tmp_path)
    assert (item.task, item.metric, item.answers) == ("testA", "iou50", ("[0.100000, 0.100000, 0.500000, 0.600000]",))
    assert item.question == "Please provide the bounding box coordinate of the region this sentence describes: left cat"
    row = {"image": "data/train2014/COCO_train2014_000000000001.jpg", "sent": "left cat", "width": 200, "height": 100}
    lines(tmp_path / "refcoco_val.jsonl", {**row, "bbox": [20, 10, 100, 60]})
    (other,) = read("refcoco", tmp_path)
    assert (other.task, other.answers, other.image) == ("val", item.answers, item.image)


class Harmful:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("harm-was-done"),))


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refcoco(tmp_path)
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([Harmful()]))
    with pytest.raises(DataError, match="is no pickle of plain values: it asks for"):
        read("refcoco", tmp_path)
    assert not (tmp_path / "harm-was-done").exists()


def test_scienceqa_asks_questions_with_pictures_only(tmp_path: Path) -> None:
    scienceqa(tmp_path)
    first, second = read("scienceqa", tmp_path)
    assert first.question == f"Which is farthest north?\nA. Ohio\nB. Texas\n{LETTER}"
    assert second.question.startswith("Context: Look at the map.\nWhich is")
    assert (first.answer_index, second.answer_index) == (0, 1)


def test_mmbench_writes_only_the_pictures_that_are_asked(tmp_path: Path) -> None:
    mmbench(tmp_path)
    first, second = read("mmbench", tmp_path)
    assert first.question == f"The passage says\nWhich side is shorter?\nA. left\nB. right\n{LETTER}"
    assert second.choices == ("red", "blue", "green")
    assert first.image == second.image == tmp_path / "unpacked" / "mmbench" / "241.jpg"
    unasked = read_source(parse_source(f"mmbench:{tmp_path}"))
    assert len(unasked.items) == 2
    assert not (tmp_path / "mmbench").exists()
    text = (tmp_path / "mmbench_dev_20230712.tsv").read_text()
    write(tmp_path / "mmbench_dev_20230712.tsv", text.replace("logic\t/9j/", "logic\t*9j/"))
    (tmp_path / "unpacked" / "mmbench" / "241.jpg").unlink()
    with pytest.raises(DataError, match=r"230712\.tsv:2: the picture of row 241 is not base64"):
        read("mmbench", tmp_path)


def test_seed_bench_leaves_videos_out(tmp_path: Path) -> None:
    seed_bench(tmp_path)
    (item,) = read("seed-bench", tmp_path)
    assert (item.id, item.answer_index, item.choices[2]) == ("1", 2, "c people")


def test_mmmu_shows_every_picture_where_it_stands(tmp_path: Path) -> None:
    mmmu(tmp_path)
    choice, opened = read("mmmu", tmp_path)
    assert choice.question == f"See <image>. Which fits?\n\n(A) <image>\n(B) it's none\n\n{LETTER}"
    assert [path.name for path in choice.images] == ["validation_Art_1-1.png", "validation_Art_1-2.png"]
    assert (choice.metric, choice.answer_index) == ("letter", 1)
    assert (opened.metric, opened.answers, len(opened.images)) == ("normalised", ("5", "five"), 1)


def test_pope_has_a_task_for_each_category(tmp_path: Path) -> None:
    pope(tmp_path)
    items = read("pope", tmp_path)
    assert [(item.task, item.answers) for item in items[:3]] == [
        ("random", ("yes",)),
        ("random", ("no",)),
        ("popular", ("yes",)),
    ]
    assert len(items) == 6


def test_mme_has_both_layouts_and_llavas_request(tmp_path: Path) -> None:
    mme(tmp_path)
    items = read("mme", tmp_path)
    assert items[0].question == f"Is it red?\n{SHORT}"
    assert [item.task for item in items].count("cognition") == 8
    assert {item.id.partition("/")[0] for item in items if item.task == "perception"} >= {"posters", "OCR"}
    write(tmp_path / "count" / "0001.txt", "Is it red? Yes\n")
    with pytest.raises(DataError, match=r"0001\.txt:1 has no tab between question and answer"):
        read("mme", tmp_path)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{x", "is not JSON: line 1: Expecting property name"),
        ("[]", "holds list, not an object"),
        ("{}", "TextVQA_0.5.1_val.json: 'data' is missing\n  allowed: 'data' with a list of objects"),
        ('{"data": [1]}', "data[0] is 1\n  allowed: an object"),
        ('{"data": [{"image_id": "x"}]}', "TextVQA_0.5.1_val.json, data[0]: 'question' is missing"),
        ('{"data": []}', "holds no question to ask"),
    ],
)
def test_damaged_files_say_what_is_wrong(tmp_path: Path, text: str, what: str) -> None:
    write(tmp_path / "TextVQA_0.5.1_val.json", text)
    with pytest.raises(DataError) as caught:
        read("textvqa", tmp_path)
    assert what in str(caught.value)
    assert "fetch it again from textvqa.org/dataset" in str(caught.value)


def test_an_item_that_its_metric_can_t_score(tmp_path: Path) -> None:
    textvqa(tmp_path)
    text = (tmp_path / "TextVQA_0.5.1_val.json").read_text()
    write(tmp_path / "TextVQA_0.5.1_val.json", text.replace('"nokia", ', "", 1))
    with pytest.raises(DataError, match="question '34602': 'answers' has 9 entries"):
        read("textvqa", tmp_path)


def test_every_benchmark_has_a_fixture_here_or_is_text() -> None:
    assert set(BUILDERS) | {"mmlu", "bbh", "bbh-cot", "c-eval", "cmmlu"} == set(BENCHMARKS.names())


def test_a_benchmark_s_fingerprint_reads_questions_but_no_pictures(tmp_path: Path) -> None:
    pope(tmp_path)
    before = earlier_release_fingerprint(tmp_path)
    shown = tmp_path / "val2014" / "COCO_val2014_000000000042.jpg"
    content = bytearray(shown.read_bytes())
    content[-1] ^= 1
    shown.write_bytes(content)
    assert earlier_release_fingerprint(tmp_path) == before
    shown.write_bytes(content + b"x")
    longer = earlier_release_fingerprint(tmp_path)
    assert longer != before
    file = tmp_path / "coco_pope_random.json"
    file.write_text(file.read_text().replace("yes", "yEs"))
    assert earlier_release_fingerprint(tmp_path) not in (before, longer)
