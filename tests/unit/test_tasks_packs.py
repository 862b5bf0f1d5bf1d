"""Reading test packs: what is accepted, what is refused and in which words, and what a limit leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from striate.errors import DataError
from striate.tasks.packs.items import Item
from striate.tasks.packs.reader import read_pack, spread

EXACT = {"id": "a", "question": "What?", "answers": ["x"], "metric": "exact", "task": "t"}
CHOOSE = {
    "id": "a",
    "context": "1+1=",
    "choices": ["2", "3"],
    "answer_index": 0,
    "metric": "choice_logprob",
    "task": "t",
}


def write(folder: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "test.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def refusal(folder: Path, *rows: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_pack(write(folder, *rows))
    return str(caught.value)


def test_a_pack_with_pictures(pack_dir: Path) -> None:
    pack = read_pack(pack_dir)
    assert pack.name == "pack"
    assert len(pack.items) == 48
    assert Counter(item.metric for item in pack.items) == dict.fromkeys(("exact", "choice", "anls", "iou50"), 12)
    first = pack.items[0]
    assert first.image is not None
    assert first.image == pack_dir / "images/square_00.png"
    assert (first.question, first.answers) == ("What colour is the square?", ("red",))
    assert pack.items[1].choices == ("yes", "no")


def test_every_kind_of_text_row(tmp_path: Path) -> None:
    rows = [
        CHOOSE,
        {**CHOOSE, "id": "b", "question": "Why?", "task": "winogrande"} | {"context": "because"},
        {**CHOOSE, "id": "c", "compare": "sum"},
        {"id": "d", "context": "He said", "continuation": "no", "metric": "last_word", "task": "t"},
        {"id": "e", "text": "Some words.", "metric": "perplexity"},
        {**EXACT, "id": 6, "answers": [12], "image": None},
        "",
    ]
    items = read_pack(write(tmp_path, *rows)).items
    assert [item.image for item in items] == [None] * 6
    assert [item.compare for item in items[:3]] == ["mean", "sum", "sum"]
    assert items[3].answers == ("no",)
    assert (items[4].task, items[4].text) == (tmp_path.name, "Some words.")
    assert (items[5].id, items[5].answers, items[5].image) == ("6", ("12",), None)


def test_images_and_image_are_one_field(pack_dir: Path) -> None:
    names = ["images/square_00.png", "images/square_01.png"]
    rows = [
        {**EXACT, "images": names[:1]},
        {**EXACT, "id": "b", "images": names[0], "image": None},
        {**EXACT, "id": "c", "image": names, "images": names, "video": None, "size": None, "task": None},
    ]
    items = read_pack(write(pack_dir, *rows)).items
    assert [[path.name for path in item.images] for item in items] == [
        ["square_00.png"],
        ["square_00.png"],
        ["square_00.png", "square_01.png"],
    ]
    assert items[2].task == "pack"


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    row = json.dumps({**EXACT, "question": "one\u2028two"}, ensure_ascii=False)
    assert read_pack(write(tmp_path, row)).items[0].question == "one\u2028two"


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("{", "test.jsonl:1 is not JSON: the text stops in the middle"),
        ("{x", "test.jsonl:1 is not JSON: Expecting property name"),
        ("[1]", "test.jsonl:1 holds list, not an object"),
        (
            {"id": "a", "text": "t"},
            "test.jsonl:1: 'metric' is missing\n  allowed: a row with 'metric'; it has 'id', 'text'",
        ),
        ({}, "test.jsonl:1: 'id', 'metric', 'question' and 'answers' are missing"),
        ({"question": "q", "answer": "a"}, "test.jsonl:1: 'id', 'metric' and 'answers' are missing"),
        ({"metric": "letter", "id": None, "answer": "A"}, "'id', 'question', 'choices' and 'answer_index' are missing"),
        ({"metric": "letter", "id": None, "answer": "A"}, "and 'answer_index'; it has 'metric', 'answer'"),
        ({"metric": "choice_logprob", "task": "t"}, "'id', 'question', 'choices' and 'answer_index' are missing"),
        ({"metric": "last_word", "id": "a"}, "'context' and 'continuation' are missing"),
        ({**EXACT, "video": "a.mp4"}, "'video' is 'a.mp4', but videos and sounds can't be shown"),
        ({**EXACT, "question": "<video>\nWhat?"}, "<video> in a question, but videos and sounds can't be shown"),
        ({**EXACT, "image": "a.png", "images": ["b.png"]}, "'image' and 'images' name different things"),
        ({**EXACT, "picture": "a.png"}, "no picture under 'image' or 'images', but 'picture' is 'a.png'"),
        ({**EXACT, "id": {"a": 1}}, "'id' is {'a': 1}"),
        ({**EXACT, "id": float("nan")}, "'id' is nan"),
        ({**EXACT, "answers": [float("inf")]}, "'answers' is inf"),
        ({**EXACT, "metric": ["exact"]}, "'metric' is ['exact']"),
        ({**EXACT, "metric": "iou50", "size": [10**400, 1]}, "'size' is"),
        ({**EXACT, "metric": "exacct"}, "unknown metric 'exacct'\n  allowed: exact, normalised, choice"),
        ({**EXACT, "metric": "exacct"}, "did you mean 'exact'? fix that line"),
        ({**EXACT, "id": " "}, "test.jsonl:1: 'id' is ' '"),
        ({**EXACT, "question": None}, "test.jsonl:1: 'question' is missing"),
        ({**EXACT, "answers": []}, "test.jsonl:1: 'answers' is []\n  allowed: 'answers' with a list of texts"),
        ({**EXACT, "answers": "x"}, "test.jsonl:1: 'answers' is 'x'"),
        ({**EXACT, "answers": [True]}, "test.jsonl:1: 'answers' is True"),
        ({**EXACT, "metric": "choice"}, "test.jsonl:1: 'choices' is missing"),
        ({**EXACT, "metric": "choice", "choices": ["y", "n"]}, "(a): answer 'x' is not one of 'choices'"),
        ({**EXACT, "metric": "choice", "choices": ["x"]}, "(a): 'choices' needs at least two entries"),
        ({**EXACT, "metric": "choice", "choices": ["x", "X."]}, "(a): two of 'choices' are the same"),
        (
            {**EXACT, "metric": "iou50"},
            "(a): answer 'x' is not a box [x1, y1, x2, y2] with an area",
        ),
        ({**EXACT, "image": "no.png"}, "test.jsonl:1: no picture 'no.png'"),
        ({**EXACT, "image": "../no.png"}, "test.jsonl:1: picture '../no.png' leaves the data folder"),
        ({**EXACT, "question": "<image> What?"}, "(a): 'question' has <image> 1 times, but 0 is the most here"),
        ({**CHOOSE, "answer_index": 2}, "(a): 'answer_index' is 2, but must be 0 to 1"),
        (
            {**CHOOSE, "answer_index": "0"},
            "test.jsonl:1: 'answer_index' is '0'\n  allowed: 'answer_index' with a whole number from 0",
        ),
        ({**CHOOSE, "compare": "max"}, "test.jsonl:1: 'compare' is 'max'\n  allowed: 'sum', 'mean' or 'characters'"),
        ({**CHOOSE, "choices": ["2"]}, "(a): 'choices' needs at least two entries"),
        (
            {"id": "a", "metric": "last_word", "context": "He", "continuation": "..."},
            "'continuation' '...' holds no word",
        ),
        ({"id": "a", "metric": "perplexity"}, "test.jsonl:1: 'text' is missing"),
    ],
)
def test_bad_rows_are_refused_by_file_and_line(tmp_path: Path, row: Any, text: str) -> None:
    assert text in refusal(tmp_path, row)


def test_the_line_number_counts_blank_lines(tmp_path: Path) -> None:
    assert "test.jsonl:3: 'metric', 'question' and 'answers' are missing" in refusal(tmp_path, EXACT, "", {"id": "b"})


def test_fields_that_are_missing_anywhere_are_named_at_once(tmp_path: Path) -> None:
    strange = {"image": "a.png", "question": "What?", "answer": "red"}
    told = refusal(tmp_path, EXACT, *[strange] * 9, {"id": "b", "metric": "letter", "question": "Which?"})
    assert told == (
        f"{tmp_path}/test.jsonl:2: 'id', 'metric' and 'answers' are missing, and in 8 more lines"
        " (3, 4, 5, 6, 7, ...)\n"
        f"{tmp_path}/test.jsonl:11: 'choices' and 'answer_index' are missing\n"
        "  allowed: a row with 'id', 'metric' and 'answers'; it has 'image', 'question', 'answer'\n"
        "  next:    fix these 10 lines"
    )


def test_an_image_where_only_text_is_asked(pack_dir: Path) -> None:
    assert "this metric asks about text only, but the row has an image" in refusal(
        pack_dir, {**CHOOSE, "image": "images/square_00.png"}
    )


def test_an_id_twice(tmp_path: Path) -> None:
    assert refusal(tmp_path, EXACT, EXACT).endswith(
        "test.jsonl: id 'a' is there twice\n  allowed: each id once\n  next:    rename one of the two"
    )


def test_a_folder_without_a_pack(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No such file or directory\n  allowed: a folder that holds test\.jsonl"):
        read_pack(tmp_path / "nowhere")
    assert "has no items" in refusal(tmp_path, "", "")
    (tmp_path / "test.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8 text"):
        read_pack(tmp_path)


def test_a_limit_is_spread_over_tasks_and_rows(pack_dir: Path) -> None:
    limited = read_pack(pack_dir, limit=8).items
    assert Counter(item.task for item in limited) == dict.fromkeys(("colour", "statement", "name", "grounding"), 2)
    assert [item.id for item in limited if item.task == "colour"] == ["exact-00", "exact-06"]
    assert limited == read_pack(pack_dir, limit=8).items
    assert read_pack(pack_dir, limit=1000) == read_pack(pack_dir)


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=60), st.integers(1, 70))
def test_spread_keeps_order_size_and_balance(tasks: list[str], limit: int) -> None:
    items = [Item(id=str(index), pack="p", task=task, metric="exact") for index, task in enumerate(tasks)]
    chosen = spread(items, limit)
    assert len(chosen) == min(limit, len(items))
    assert [int(item.id) for item in chosen] == sorted({int(item.id) for item in chosen})
    counts, sizes = Counter(item.task for item in chosen), Counter(tasks)
    cut_short = [counts[task] for task in sizes if counts[task] < sizes[task]]
    assert not cut_short or max(counts.values()) <= min(cut_short) + 1


def test_metrics_packs_and_comparison_load_without_torch() -> None:
    code = (
        "import sys, striate.tasks.packs.reader, striate.tasks.scoring.compare; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
