"""Training samples, test items and the files of published benchmarks, mutated field by field."""

from __future__ import annotations

import copy
import csv
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attack_configs import DIGITS, checked_and_done
from attack_engine import CLEAN, FAILED, WEAK, Case, Place, Verdict, judge
from published_kit import BUILDERS

# JSON for a value of any field.
VALUES = {
    "null": "null",
    "true": "true",
    "zero": "0",
    "minus one": "-1",
    "a fraction": "0.5",
    "1e999": "1e999",
    "NaN": "NaN",
    "5000 digits": DIGITS,
    "empty": '""',
    "a blank": '" "',
    "a word": '"nonsense"',
    "half an emoji": '"\\ud83c"',
    "a NUL": '"a\\u0000b"',
    "an escape": '"\\u001b[31mred"',
    "outside": '"../../../../etc/passwd"',
    "absolute": '"/etc/passwd"',
    "far too long": json.dumps("x" * 100_000),
    "an empty list": "[]",
    "a list of numbers": "[1, 2, 3]",
    "a list of words": '["a", "b"]',
    "a list of nothing": "[null]",
    "a mapping": '{"a": 1}',
    "deep": "[" * 50_000 + "]" * 50_000,
}
ABSENT = "absent"
TRAIN = ("run", "--set", "evaluate.packs=[]", "--set", "prune.remove=0")
ASK = ("evaluate", "--set", "evaluate.models=[start]")
SAMPLES: dict[str, dict[str, Any]] = {
    "llava": {
        "id": "s",
        "image": "images/square_00.png",
        "task": "t",
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}],
    },
    "chat": {
        "id": "s",
        "images": ["images/square_00.png"],
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": "red"},
        ],
    },
    "query": {
        "id": "s",
        "images": ["images/square_00.png"],
        "query": "<image>What?",
        "response": "red",
        "history": [["Hi", "Hello"]],
        "system": "Be brief.",
    },
    "alpaca": {
        "image": "images/square_00.png",
        "instruction": "<image>\nName it.",
        "input": "In a word.",
        "output": "red",
    },
    "texts": {"images": ["images/square_00.png"], "texts": [{"user": "What?", "assistant": "red"}]},
    "question": {"image": {"path": "images/square_00.png", "bytes": None}, "question": "What?", "answer": "red"},
}
PICTURE = {"image": "images/square_00.png"}
ITEMS: dict[str, dict[str, Any]] = {
    "exact": {"id": "i", **PICTURE, "question": "What?", "answers": ["red"], "metric": "exact", "task": "t"},
    "choice": {"id": "i", **PICTURE, "question": "?", "answers": ["a"], "choices": ["a", "b"], "metric": "choice"},
    "letter": {"id": "i", "question": "?\nA. x\nB. y", "choices": ["x", "y"], "answer_index": 1, "metric": "letter"},
    "iou50": {"id": "i", **PICTURE, "question": "?", "answers": ["[0,0,9,9]"], "size": [40, 32], "metric": "iou50"},
    "vqa": {"id": "i", **PICTURE, "question": "What?", "answers": ["red"] * 10, "metric": "vqa"},
    "yes_no": {"id": "i", **PICTURE, "question": "Is it?", "answers": ["yes"], "metric": "yes_no"},
    "choice_logprob": {
        "id": "i",
        "context": "It is",
        "choices": ["a", "b"],
        "answer_index": 0,
        "compare": "sum",
        "metric": "choice_logprob",
    },
    "last_word": {"id": "i", "context": "It is", "continuation": "red", "metric": "last_word"},
    "perplexity": {"id": "i", "text": "The sky is blue.", "metric": "perplexity"},
}


def paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every value within a JSON value."""
    if before:
        yield before
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from paths(part, (*before, key))


def replaced(value: Any, place: tuple[Any, ...], text: str) -> str:
    """Return `value` as JSON with the JSON `text` at `place`, or without that place."""
    changed = copy.deepcopy(value)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    if text == ABSENT:
        del inner[place[-1]]
    else:
        inner[place[-1]] = "@value@"
    return json.dumps(changed).replace('"@value@"', text)


def _sample(row: str) -> Callable[[Place], Verdict]:
    def play(place: Place) -> Verdict:
        rows = json.loads((place.pack / "train.json").read_text())
        (place.pack / "train.json").write_text(f"[{json.dumps(rows[0])},\n{row},\n{json.dumps(rows[1])}]")
        return checked_and_done(place, *TRAIN)

    return play


def _item(row: str) -> Callable[[Place], Verdict]:
    def play(place: Place) -> Verdict:
        lines = (place.pack / "test.jsonl").read_text().splitlines()
        (place.pack / "test.jsonl").write_text(f"{lines[0]}\n{row}\n{lines[1]}\n")
        return checked_and_done(place, *ASK)

    return play


def _reader(name: str, change: Callable[[Path, random.Random], str], seed: int) -> Callable[[Place], Verdict]:
    """Return a case that changes a benchmark's files and reads them with their pictures."""

    def play(place: Place) -> Verdict:
        from striate.errors import DataError
        from striate.tasks.packs.sources import parse_source, read_source

        folder = place.root / "published"
        folder.mkdir()
        _build(name, folder)
        outside = _outside(place)
        change(folder, random.Random(seed))
        try:
            pack = read_source(parse_source(f"{name}:{folder}"), None, place.root / "unpacked")
        except DataError as error:
            if not (error.allowed and error.next_step):
                return Verdict(WEAK, str(error)[:400])
            return Verdict(CLEAN) if len(str(error)) < 3000 else Verdict(WEAK, f"{len(str(error))} characters")
        if _outside(place) != outside:
            return Verdict(FAILED, f"wrote outside: {sorted(_outside(place) - outside)[:3]}")
        inside = (folder.resolve(), (place.root / "unpacked").resolve())
        far = [
            path for item in pack.items for path in item.images if not any(map(path.resolve().is_relative_to, inside))
        ]
        return Verdict(FAILED, f"takes a picture from outside: {far[0]}") if far else Verdict(CLEAN)

    return play


def _outside(place: Place) -> set[str]:
    return {
        str(path)
        for path in (*place.root.parent.glob("*"), *place.root.rglob("*"), *Path("/tmp").glob("*.png"))
        if not path.is_relative_to(place.root / "published") and not path.is_relative_to(place.root / "unpacked")
    }


def _build(name: str, folder: Path) -> None:
    if name in BUILDERS:
        BUILDERS[name](folder)
    elif name.startswith("bbh"):
        _write(folder / "bbh/snarks.json", json.dumps({"examples": [{"input": "Pick.", "target": "(A)"}] * 2}))
        shown = "Q: Pick.\nOptions:\n(A) x\n(B) y\nA: Let's think step by step.\nHm.\n\nSo the answer is (B)."
        _write(folder / "cot-prompts/snarks.txt", "canary\n-----\nDo it.\n\n" + "\n\n".join([shown] * 3))
    elif name == "mmlu":
        _write(folder / "dev/anatomy_dev.csv", "\n".join(f"What is {n}?,{n},5,6,7,A" for n in range(5)))
        _write(folder / "test/anatomy_test.csv", "What?,0,4,2,6,B\nWhy?,1,2,3,4,D\n")
    elif name == "c-eval":
        head, row = "id,question,A,B,C,D,answer", "0,which?,a,b,c,d,C"
        _write(folder / "val/accountant_val.csv", f"{head}\n{row}\n")
        _write(folder / "dev/accountant_dev.csv", f"{head},explanation\n" + f"{row},why\n" * 5)
    else:
        for part in ("dev", "test"):
            _write(folder / part / "agronomy.csv", ",Question,A,B,C,D,Answer\n" + "0,which?,a,b,c,d,D\n" * 5)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _mutate(folder: Path, rng: random.Random) -> str:
    """Change one value of one of the folder's question files; return where."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in (".json", ".jsonl", ".csv", ".tsv", ".txt", ".p", ".parquet")
    )
    file = rng.choice(files)
    if file.suffix in (".csv", ".tsv"):
        _mutate_table(file, rng)
    elif file.suffix in (".txt", ".p", ".parquet"):
        content = bytearray(file.read_bytes())
        for _ in range(rng.choice((1, 1, 3, 20))):
            content[rng.randrange(len(content))] = rng.choice((0, 10, 9, 255, 34, 93, rng.randrange(256)))
        file.write_bytes(bytes(content[: rng.choice((len(content), len(content), len(content) // 2))]))
    else:
        _mutate_json(file, rng)
    return str(file)


def _mutate_json(file: Path, rng: random.Random) -> None:
    text = file.read_text(encoding="utf-8")
    try:
        values = [json.loads(text)]
    except ValueError:
        values = [json.loads(line) for line in text.splitlines()]
    index = rng.randrange(len(values))
    place = rng.choice(list(paths(values[index])))
    label = rng.choice([*VALUES.values(), ABSENT, ABSENT])
    file.write_text(
        "\n".join(replaced(value, place, label) if n == index else json.dumps(value) for n, value in enumerate(values))
    )


def _mutate_table(file: Path, rng: random.Random) -> None:
    delimiter = "\t" if file.suffix == ".tsv" else ","
    rows = [row.split(delimiter) for row in file.read_text(encoding="utf-8").splitlines()]
    row = rng.choice(rows)
    cell = rng.randrange(len(row))
    row[cell] = rng.choice(
        ("", " ", "E", "AB", "-1", "../../../x", "/tmp/x", "nan", "a\0b", '"', "'", "x" * 70_000, "\x1b[31m", "1e999")
    )
    if rng.random() < 0.3:
        del row[cell]
    file.write_text("\n".join(delimiter.join(row) for row in rows) + "\n", encoding="utf-8")


def _escape(name: str, key: str, value: str) -> Callable[[Path, random.Random], str]:
    """Return a change that writes `value` wherever the benchmark names a picture by `key`."""

    def change(folder: Path, rng: random.Random) -> str:
        for file in sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl", ".tsv")):
            text = file.read_text(encoding="utf-8")
            if file.suffix == ".tsv":
                lines = list(csv.reader(io.StringIO(text), delimiter="\t"))
                column = lines[0].index(key) if key in lines[0] else -1
                for line in lines[1:] if column >= 0 else ():
                    line[column] = value
                text = "\n".join("\t".join(line) for line in lines) + "\n"
            else:
                values = [json.loads(line) for line in text.splitlines()]
                for place in [place for one in values for place in paths(one) if place[-1] == key]:
                    for one in values:
                        _put(one, place, value)
                text = "\n".join(json.dumps(one) for one in values)
            file.write_text(text, encoding="utf-8")
        return name

    return change


def _put(value: Any, place: tuple[Any, ...], new: str) -> None:
    try:
        for key in place[:-1]:
            value = value[key]
        value[place[-1]] = new
    except (KeyError, IndexError, TypeError):
        return


PICTURE_KEYS = {
    "textvqa": "image_id",
    "docvqa": "image",
    "gqa": "imageId",
    "refcoco": "file_name",
    "scienceqa": "image",
    "mmbench": "index",
    "seed-bench": "data_id",
    "pope": "image",
    "tdiuc": "image_id",
}
OUTSIDE = ("../../../escape", "/tmp/striate-escape", "..", "", ".", "a\0b", "x" * 5000, "C:\\x", "images/../../../e")
TEXT_BENCHMARKS = ("mmlu", "bbh", "bbh-cot", "c-eval", "cmmlu")


def whole_files() -> Iterator[tuple[str, Callable[[Place], Verdict]]]:
    """Yield packs that are wrong as a whole, by name."""
    good = json.dumps(ITEMS["exact"])
    for label, text in {
        "one id twice": f"{good}\n{good}",
        "a list": f"[{good}]",
        "no line": "",
        "blank lines": "\n\n \n",
        "two objects on a line": f"{good} {good}",
        "a comma at the end": f"{good},",
        "single quotes": "{'id': 'i'}",
        "only null": "null",
        "unicode line separators": good.replace("What", "What\u2028\u0085"),
    }.items():
        yield f"test.jsonl: {label}", _file("test.jsonl", text)
    sample = json.dumps(SAMPLES["llava"])
    for label, text in {
        "one id twice": f"[{sample}, {sample}]",
        "an object": sample,
        "empty list": "[]",
        "a list in a list": f"[[{sample}]]",
        "words": '["a"]',
        "JSON lines": f"{sample}\n{sample}",
        "a comma at the end": f"[{sample},]",
        "video": json.dumps([{**SAMPLES["llava"], "video": "a.mp4"}]),
        "a video placeholder": f"[{sample.replace('<image>', '<video>')}]",
        "image and images": json.dumps([{**SAMPLES["llava"], "images": ["images/square_01.png"]}]),
        "null columns": json.dumps([{**SAMPLES["llava"], "images": None, "messages": None, "video": None}]),
    }.items():
        yield f"train.json: {label}", _file("train.json", text)


def _file(name: str, text: str) -> Callable[[Place], Verdict]:
    def play(place: Place) -> Verdict:
        (place.pack / name).write_text(text, encoding="utf-8")
        return checked_and_done(place, *(TRAIN if name == "train.json" else ASK))

    return play


def _silent(name: str, row: dict[str, Any]) -> Callable[[Place], Verdict]:
    """Return a case in which something must be said or refused: it is not taken in silence."""

    def play(place: Place) -> Verdict:
        (place.pack / name).write_text(json.dumps([row]) if name == "train.json" else json.dumps(row))
        return judge(place.striate("check", place.config), refused=True)

    return play


def cases() -> list[Case]:
    """Return all cases of data."""
    found = [
        Case("training samples", f"{form} {'.'.join(map(str, place))}: {label}", _sample(replaced(row, place, text)))
        for form, row in SAMPLES.items()
        for place in paths(row)
        for label, text in {**VALUES, ABSENT: ABSENT}.items()
    ]
    found += [
        Case("test items", f"{metric} {'.'.join(map(str, place))}: {label}", _item(replaced(row, place, text)))
        for metric, row in ITEMS.items()
        for place in paths(row)
        for label, text in {**VALUES, ABSENT: ABSENT}.items()
    ]
    found += [Case("whole data files", label, play) for label, play in whole_files()]
    found.append(
        Case(
            "whole data files",
            "a video sample",
            _silent(
                "train.json",
                {
                    **SAMPLES["llava"],
                    "image": None,
                    "video": "a.mp4",
                    "conversations": [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "red"}],
                },
            ),
        )
    )
    found += [
        Case("benchmark files", f"{name}: mutation {seed}", _reader(name, _mutate, seed), ())
        for name in (*BUILDERS, *TEXT_BENCHMARKS)
        for seed in range(20)
    ]
    found += [
        Case(
            "benchmark files", f"{name}: picture named {value[:20]!r}", _reader(name, _escape(name, key, value), 0), ()
        )
        for name, key in PICTURE_KEYS.items()
        for value in OUTSIDE
    ]
    return found
