"""Ten conversations written in every form and kind of file that striate reads: one builder a form."""

from __future__ import annotations

import base64
import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from striate.data.sources.source_options import PLAIN, SourceOptions


@dataclass(frozen=True)
class Talk:
    """One conversation: `picture` is a file's name, or empty."""

    id: str
    question: str
    answer: str
    picture: str


@dataclass(frozen=True)
class Written:
    """Where a form was written to, and how it is read."""

    path: Path
    options: SourceOptions = PLAIN


COLOURS = ("red", "green", "blue", "black", "white", "yellow", "teal", "gray")
TALKS = (
    *(Talk(f"t{n}", f"Which colour is square {n}, «é»?", name, f"{n}.png") for n, name in enumerate(COLOURS)),
    Talk("t8", "Is ice, as a rule, cold?", "yes", ""),
    Talk("t9", 'What is "2 + 2"?', "4", ""),
)
PICTURED = TALKS[:8]
Writer = Callable[[Path], Written]
FORMS: dict[str, Writer] = {}


def form(name: str) -> Callable[[Writer], Writer]:
    """Register a writer of the ten conversations under `name`."""

    def register(writer: Writer) -> Writer:
        FORMS[name] = writer
        return writer

    return register


def picture(name: str) -> bytes:
    """The bytes of a picture: one colour a name."""
    index = int(name.partition(".")[0])
    stream = io.BytesIO()
    Image.new("RGB", (30 + index, 28), COLOURS[index]).save(stream, "PNG")
    return stream.getvalue()


def write_pictures(folder: Path) -> None:
    """Write the pictures as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for talk in PICTURED:
        (folder / talk.picture).write_bytes(picture(talk.picture))


def data_url(name: str) -> str:
    """The picture as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(picture(name)).decode()}"


def tagged(talk: Talk) -> str:
    """The question with the tag of its picture."""
    return f"<image>\n{talk.question}" if talk.picture else talk.question


def lines(folder: Path, rows: Iterable[Mapping[str, Any]], options: SourceOptions = PLAIN) -> Written:
    """Write JSON lines beside the pictures."""
    write_pictures(folder / "images")
    (folder / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return Written(folder / "train.jsonl", options)


def llava(talk: Talk) -> dict[str, Any]:
    """The conversation in LLaVA's form."""
    turns = [{"from": "human", "value": tagged(talk)}, {"from": "gpt", "value": talk.answer}]
    return {"id": talk.id, **({"image": talk.picture} if talk.picture else {}), "conversations": turns}


def chat(talk: Talk, blocks: Callable[[Talk], list[dict[str, Any]]]) -> dict[str, Any]:
    """The conversation as chat messages, with `blocks` as the picture's part of the question."""
    content = [*(blocks(talk) if talk.picture else []), {"type": "text", "text": talk.question}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": talk.answer}]
    return {"id": talk.id, "messages": messages}


def images(talk: Talk) -> dict[str, Any]:
    """The `images` of a record."""
    return {"images": [talk.picture] if talk.picture else []}


@form("LLaVA, JSON")
def _llava_json(folder: Path) -> Written:
    write_pictures(folder / "images")
    (folder / "train.json").write_text(json.dumps([llava(talk) for talk in TALKS]), encoding="utf-8")
    return Written(folder)


@form("LLaVA, JSON lines")
def _llava_lines(folder: Path) -> Written:
    return lines(folder, map(llava, TALKS))


@form("ShareGPT")
def _sharegpt(folder: Path) -> Written:
    def row(talk: Talk) -> dict[str, Any]:
        turns = [{"from": "user", "value": tagged(talk)}, {"from": "chatgpt", "value": talk.answer}]
        return {"id": talk.id, "conversations": turns, **images(talk)}

    return lines(folder, map(row, TALKS))


@form("chat messages as text")
def _messages(folder: Path) -> Written:
    def row(talk: Talk) -> dict[str, Any]:
        turns = [{"role": "user", "content": tagged(talk)}, {"role": "assistant", "content": talk.answer}]
        return {"id": talk.id, "messages": turns, **images(talk)}

    return lines(folder, map(row, TALKS))


@form("TRL's content blocks with a list of pictures")
def _trl(folder: Path) -> Written:
    def row(talk: Talk) -> dict[str, Any]:
        return {**chat(talk, lambda _: [{"type": "image", "text": None}]), **images(talk)}

    return lines(folder, map(row, TALKS))


@form("content blocks that name pictures")
def _blocks(folder: Path) -> Written:
    return lines(folder, (chat(talk, lambda one: [{"type": "image", "path": one.picture}]) for talk in TALKS))


@form("OpenAI, files")
def _openai_files(folder: Path) -> Written:
    def block(talk: Talk) -> list[dict[str, Any]]:
        return [{"type": "image_url", "image_url": {"url": (folder / "images" / talk.picture).as_uri()}}]

    return lines(folder, (chat(talk, block) for talk in TALKS))


@form("OpenAI, data URLs")
def _openai_data(folder: Path) -> Written:
    def block(talk: Talk) -> list[dict[str, Any]]:
        return [{"type": "image_url", "image_url": {"url": data_url(talk.picture), "detail": "low"}}]

    return lines(folder, (chat(talk, block) for talk in TALKS))


@form("OpenAI, input blocks")
def _openai_input(folder: Path) -> Written:
    def block(talk: Talk) -> list[dict[str, Any]]:
        return [{"type": "input_image", "image_url": data_url(talk.picture)}]

    return lines(folder, (chat(talk, block) for talk in TALKS))


@form("Qwen2-VL's blocks")
def _qwen(folder: Path) -> Written:
    def row(talk: Talk) -> dict[str, Any]:
        content = [*([{"image": talk.picture}] if talk.picture else []), {"text": talk.question}]
        answer = {"role": "assistant", "content": [{"text": talk.answer}]}
        return {"id": talk.id, "messages": [{"role": "user", "content": content}, answer]}

    return lines(folder, map(row, TALKS))


@form("Qwen-VL's tags")
def _qwen_tags(folder: Path) -> Written:
    def row(talk: Talk) -> dict[str, Any]:
        question = f"<img>{talk.picture}</img>\n{talk.question}" if talk.picture else talk.question
        turns = [{"from": "user", "value": question}, {"from": "assistant", "value": talk.answer}]
        return {"id": talk.id, "conversations": turns}

    return lines(folder, map(row, TALKS))


@form("ms-swift's query and response")
def _swift(folder: Path) -> Written:
    def row(talk: Talk) -> dict[str, Any]:
        return {"id": talk.id, "query": tagged(talk), "response": talk.answer, "history": [], **images(talk)}

    return lines(folder, map(row, TALKS))


@form("alpaca with pictures")
def _alpaca(folder: Path) -> Written:
    def row(talk: Talk) -> dict[str, Any]:
        before, _, after = tagged(talk).rpartition("\n")
        instruction = {"instruction": before, "input": after} if before else {"instruction": after, "input": ""}
        return {"id": talk.id, **instruction, "output": talk.answer, **images(talk)}

    return lines(folder, map(row, TALKS))


@form("prompt and completion as text")
def _prompt_text(folder: Path) -> Written:
    def row(talk: Talk) -> dict[str, Any]:
        return {"id": talk.id, "prompt": tagged(talk), "completion": talk.answer, **images(talk)}

    return lines(folder, map(row, TALKS))


@form("prompt and completion as messages")
def _prompt_messages(folder: Path) -> Written:
    def row(talk: Talk) -> dict[str, Any]:
        messages = chat(talk, lambda _: [{"type": "image"}])["messages"]
        return {"id": talk.id, "prompt": messages[:1], "completion": messages[1:], **images(talk)}

    return lines(folder, map(row, TALKS))


@form("question and answer")
def _question(folder: Path) -> Written:
    def row(talk: Talk) -> dict[str, Any]:
        return {"id": talk.id, "question": talk.question, "answer": talk.answer, "image": talk.picture or None}

    return lines(folder, map(row, TALKS))


@form("no tag, put first")
def _untagged(folder: Path) -> Written:
    rows = [
        {**llava(talk), "conversations": llava(Talk(talk.id, talk.question, talk.answer, ""))["conversations"]}
        for talk in TALKS
    ]
    return lines(folder, rows, SourceOptions(untagged="first"))


@form("pictures in another folder")
def _elsewhere(folder: Path) -> Written:
    photos = folder.parent / f"{folder.name}-photos"
    rows = [{**llava(talk), **({"image": str(photos / talk.picture)} if talk.picture else {})} for talk in TALKS]
    written = lines(folder, rows, SourceOptions(images=(photos,)))
    (folder / "images").rename(photos)
    return written


@form("pictures behind a link")
def _linked(folder: Path) -> Written:
    photos = folder.parent / f"{folder.name}-photos"
    written = lines(folder, map(llava, TALKS), SourceOptions(images=(photos,)))
    (folder / "images").rename(photos)
    (folder / "images").symlink_to(photos)
    return written


COLUMNS = {"id": "key", "image": "file", "question": "asked", "answer": "label"}


def _table(folder: Path, name: str, delimiter: str) -> Written:
    write_pictures(folder / "images")
    with (folder / name).open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow([*COLUMNS.values(), "note"])
        writer.writerows([talk.id, talk.picture, talk.question, talk.answer, "x"] for talk in TALKS)
    return Written(folder, SourceOptions(columns=COLUMNS))


@form("CSV with columns by name")
def _csv(folder: Path) -> Written:
    return _table(folder, "labels.csv", ",")


@form("CSV with semicolons")
def _semicolons(folder: Path) -> Written:
    return _table(folder, "labels.csv", ";")


@form("TSV with columns by name")
def _tsv(folder: Path) -> Written:
    return _table(folder, "labels.tsv", "\t")


def _cauldron(talk: Talk) -> dict[str, Any]:
    held = [{"bytes": picture(talk.picture), "path": None}] if talk.picture else []
    return {"id": talk.id, "images": held, "texts": [{"user": talk.question, "assistant": talk.answer, "source": "x"}]}


def _arrow_table(rows: Iterable[Mapping[str, Any]]) -> Any:
    import pyarrow

    return pyarrow.Table.from_pylist(list(rows))


@form("Parquet, pictures as objects")
def _parquet(folder: Path) -> Written:
    import pyarrow.parquet

    (folder / "data").mkdir(parents=True)
    for number, rows in enumerate((TALKS[:4], TALKS[4:])):
        file = folder / "data" / f"train-{number:05d}-of-00002.parquet"
        pyarrow.parquet.write_table(_arrow_table(map(_cauldron, rows)), file)
    return Written(folder)


@form("Parquet, pictures as bytes")
def _parquet_bytes(folder: Path) -> Written:
    import pyarrow.parquet

    folder.mkdir(parents=True)
    rows = [
        {"q": talk.question, "a": talk.answer, "id": talk.id, "img": picture(talk.picture) if talk.picture else None}
        for talk in TALKS
    ]
    pyarrow.parquet.write_table(_arrow_table(rows), folder / "mine.parquet")
    columns = {"image": "img", "question": "q", "answer": "a"}
    return Written(folder / "mine.parquet", SourceOptions(columns=columns))


@form("an Arrow file")
def _arrow(folder: Path) -> Written:
    import pyarrow

    folder.mkdir(parents=True)
    table = _arrow_table(map(_cauldron, TALKS))
    with pyarrow.ipc.new_file(str(folder / "train.arrow"), table.schema) as writer:
        writer.write_table(table)
    return Written(folder)


@form("an Arrow file, compressed")
def _arrow_compressed(folder: Path) -> Written:
    import pyarrow

    folder.mkdir(parents=True)
    table = _arrow_table(map(_cauldron, TALKS))
    options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
    with pyarrow.ipc.new_stream(str(folder / "train.arrow"), table.schema, options=options) as writer:
        writer.write_table(table)
    return Written(folder)


def trl_data() -> Any:
    """The conversations as a data set of TRL's: content blocks, and pictures that `datasets` decodes."""
    import datasets

    rows = [
        {
            **chat(talk, lambda _: [{"type": "image"}]),
            "images": [{"bytes": picture(talk.picture), "path": None}] if talk.picture else [],
        }
        for talk in TALKS
    ]
    for row in rows:
        row["messages"][1]["content"] = [{"type": "text", "text": row["messages"][1]["content"]}]
        for message in row["messages"]:
            message["content"] = [{"type": block["type"], "text": block.get("text")} for block in message["content"]]
    block = {"type": datasets.Value("string"), "text": datasets.Value("string")}
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.List(block)}),
            "images": datasets.List(datasets.Image()),
        }
    )
    return datasets.Dataset.from_list(rows, features=features)


@form("save_to_disk")
def _saved(folder: Path) -> Written:
    trl_data().save_to_disk(folder, num_shards=3)
    return Written(folder)


@form("save_to_disk, with splits")
def _saved_splits(folder: Path) -> Written:
    import datasets

    data = trl_data()
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(folder)
    return Written(folder)


def tar_of(members: Iterable[tuple[str, bytes]], file: Path) -> None:
    """Write a tar of the members."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@form("WebDataset, conversations")
def _webdataset(folder: Path) -> Written:
    for number, talks in enumerate((TALKS[:5], TALKS[5:])):
        members = []
        for talk in talks:
            row = {key: value for key, value in llava(talk).items() if key != "image"}
            members += [(f"data/{talk.id}.png", picture(talk.picture))] if talk.picture else []
            members += [(f"data/{talk.id}.json", json.dumps(row).encode())]
        tar_of(members, folder / f"train-{number:04d}.tar")
    return Written(folder)


@form("WebDataset, texts beside pictures")
def _webdataset_texts(folder: Path) -> Written:
    members = []
    for talk in TALKS:
        members += [(f"{talk.id}.png", picture(talk.picture))] if talk.picture else []
        members += [(f"{talk.id}.question", talk.question.encode()), (f"{talk.id}.txt", talk.answer.encode())]
    tar_of(members, folder / "all.tar")
    return Written(folder, SourceOptions(columns={"answer": "txt"}))
