"""Tiny copies of the benchmarks with pictures, in the layout of their published files."""

from __future__ import annotations

import base64
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from striate.tasks.benchmarks.mme import COGNITION, PERCEPTION

APART = ("posters", "celebrity", "scene", "landmark", "artwork")


def picture(path: Path, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10 * size[0] % 256, 20, 30)).save(path, "JPEG")
    return path


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def lines(path: Path, *rows: Any) -> None:
    write(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def textvqa(folder: Path) -> None:
    row = {
        "question": "what brand is it?",
        "image_id": "0054c91397f2fe05",
        "question_id": 34602,
        "answers": ["nokia"] * 10,
    }
    write(folder / "TextVQA_0.5.1_val.json", {"dataset_name": "textvqa", "data": [row]})
    picture(folder / "train_images" / "0054c91397f2fe05.jpg")
    tokens = {"image_id": "0054c91397f2fe05", "ocr_tokens": ["NOKIA", "10:30"], "ocr_info": []}
    write(folder / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": [tokens]})


def docvqa(folder: Path) -> None:
    row = {"questionId": 49153, "question": "What is the date?", "docId": 14465, "image": "documents/pybv0228_81.png"}
    write(folder / "val_v1.0.json", {"dataset_name": "DocVQA", "data": [{**row, "answers": ["1/8/93", "8 Jan 93"]}]})
    picture(folder / "documents" / "pybv0228_81.png")


def ocrvqa(folder: Path) -> None:
    book = {"imageURL": "http://x/I/51fd.jpg", "questions": ["Who wrote this?", "Is it a cookbook?"]}
    test = {**book, "answers": ["Jane Doe", "No"], "title": "T", "split": 3}
    write(folder / "dataset.json", {"1588": test, "1589": {**test, "split": 1}})
    picture(folder / "images" / "1588.jpg")


def tdiuc(folder: Path) -> None:
    question = {"question": "What color is the cat?", "image_id": 42, "question_id": 7}
    answer = {"question_id": 7, "image_id": 42, "question_type": "color", "answers": [{"answer": "black"}]}
    write(folder / "Questions" / "OpenEnded_mscoco_val2014_questions.json", {"questions": [question]})
    write(folder / "Annotations" / "mscoco_val2014_annotations.json", {"annotations": [answer]})
    picture(folder / "Images" / "val2014" / "COCO_val2014_000000000042.jpg")


def gqa(folder: Path) -> None:
    row = {"question": "Is it overcast?", "imageId": "n161313", "answer": "no", "fullAnswer": "No, it is clear."}
    write(folder / "testdev_balanced_questions.json", {"201307251": row})
    picture(folder / "images" / "n161313.jpg")


def refcoco(folder: Path) -> None:
    sentence = {"tokens": ["left", "cat"], "raw": "left cat", "sent_id": 5, "sent": "left cat"}
    ref = {"ref_id": 3, "ann_id": 9, "image_id": 1, "split": "testA", "sentences": [sentence], "sent_ids": [5]}
    (folder / "refs(unc).p").write_bytes(pickle.dumps([ref, {**ref, "ref_id": 4, "split": "train"}], protocol=2))
    photo = {"id": 1, "file_name": "COCO_train2014_000000000001.jpg", "width": 200, "height": 100}
    boxes = [{"id": 9, "bbox": [20, 10, 80, 50], "image_id": 1}]
    write(folder / "instances.json", {"annotations": boxes, "images": [photo]})
    picture(folder / "train2014" / photo["file_name"])


def scienceqa(folder: Path) -> None:
    row = {
        "question": "Which is farthest north?",
        "choices": ["Ohio", "Texas"],
        "answer": 0,
        "hint": "",
        "image": "image.png",
    }
    problems = {"4": row, "5": {**row, "image": None}, "6": {**row, "hint": "Look at the map.", "answer": 1}, "7": row}
    write(folder / "problems.json", problems)
    write(folder / "pid_splits.json", {"train": ["7"], "test": ["4", "5", "6"]})
    for name in ("4", "6"):
        picture(folder / "images" / "test" / name / "image.png")


def mmbench(folder: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(stream, "JPEG")
    encoded = base64.b64encode(stream.getvalue()).decode()
    header = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsplit"
    first = f"241\tWhich side is shorter?\tThe passage says\tleft\tright\t\t\tA\tlogic\t{encoded}\tdev"
    second = "1000241\tIs it\tnan\tred\tblue\tgreen\tnan\tB\tcolour\t241\tdev"
    write(folder / "mmbench_dev_20230712.tsv", "\n".join([header, first, second]) + "\n")


def seed_bench(folder: Path) -> None:
    choices = {f"choice_{letter}": f"{letter} people" for letter in "abcd"}
    row = {
        **choices,
        "answer": "C",
        "data_id": "1454_2591",
        "data_type": "image",
        "question": "How many?",
        "question_id": "1",
    }
    video = {**row, "data_type": "video", "question_id": "2", "data_id": "v.mp4"}
    write(folder / "SEED-Bench.json", {"question_type": {}, "questions": [row, video]})
    picture(folder / "SEED-Bench-image" / "1454_2591")


def pope(folder: Path) -> None:
    row = {
        "question_id": 1,
        "image": "COCO_val2014_000000000042.jpg",
        "text": "Is there a cat in the image?",
        "label": "yes",
    }
    for category in ("random", "popular", "adversarial"):
        lines(folder / f"coco_pope_{category}.json", row, {**row, "question_id": 2, "label": "no"})
    picture(folder / "val2014" / row["image"])


def mme(folder: Path) -> None:
    request = "Please answer yes or no."
    for subtask in {*PERCEPTION, *COGNITION} - {*APART}:
        write(folder / subtask / "0001.txt", f"Is it red? {request}\tYes\nIs it blue? {request}\tNo\n")
        picture(folder / subtask / "0001.png")
    for subtask in APART:
        write(folder / subtask / "questions_answers_YN" / "tt01.txt", f"Is it Bob? {request}\tNo\n")
        picture(folder / subtask / "images" / "tt01.jpg")


def mmmu(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    stream = io.BytesIO()
    Image.new("RGB", (9, 9), "blue").save(stream, "PNG")
    shown = {"bytes": stream.getvalue(), "path": "a.png"}
    row = {
        "id": "validation_Art_1",
        "question": "See <image 1>. Which fits?",
        "options": "['<image 2>', \"it's none\"]",
        "answer": "B",
        "question_type": "multiple-choice",
        "image_1": shown,
        "image_2": shown,
        "image_3": None,
    }
    opened = {
        **row,
        "id": "validation_Art_2",
        "question": "How many?",
        "options": "[]",
        "answer": "['5', 'five']",
        "question_type": "open",
        "image_2": None,
    }
    (folder / "Art").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist([row, opened]), folder / "Art" / "validation-00000-of-00001.parquet")


BUILDERS = {
    "textvqa": textvqa,
    "textvqa-ocr": textvqa,
    "docvqa": docvqa,
    "ocrvqa": ocrvqa,
    "tdiuc": tdiuc,
    "gqa": gqa,
    "refcoco": refcoco,
    "refcoco-plus": refcoco,
    "refcocog": refcoco,
    "scienceqa": scienceqa,
    "mmbench": mmbench,
    "seed-bench": seed_bench,
    "mmmu": mmmu,
    "pope": pope,
    "mme": mme,
}
