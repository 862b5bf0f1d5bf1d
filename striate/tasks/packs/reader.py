"""Read test packs, folders with a `test.jsonl`; errors name file and line. No torch."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from striate.data.picture_names import picture_names, refuse_other_media, refuse_other_names
from striate.data.rows import Row, listed
from striate.data.samples import PLACEHOLDER
from striate.data.sources.image_folder import ImageFolder
from striate.errors import DataError, did_you_mean
from striate.printable import shown
from striate.storage.read_files import Form, as_object, json_lines
from striate.tasks.metrics import METRICS
from striate.tasks.metrics.base import AskingMode
from striate.tasks.packs.items import Compare, Item, Pack

FILE_NAME = "test.jsonl"
PACK_FILE = Form(DataError, f"a folder that holds {FILE_NAME}, one JSON object a line")
PACK_ROW = Form(DataError, "a row as docs/data.md lists them by metric", "fix that line")
TEXTS = ("question", "context", "continuation", "text", "answers", "choices")
LARGEST = 10**9
SUM_TASKS = frozenset({"winogrande"})


def read_pack(path: Path, limit: int | None = None, images: Sequence[Path] = ()) -> Pack:
    """Return the pack in folder `path`; with `limit`, a subset of at most that many, see `spread`.

    A line of `test.jsonl` is an object with `id`, `metric`, `task` (the pack's name if missing) and, by metric:

    - metrics of generated answers (`exact`, `vqa`, `relaxed`, ...): `question`, `answers`, `image` (none for a text
      question, a list for several pictures); `choices` for `choice`; `choices` and `answer_index` instead of `answers`
      for `letter`; `size`, the picture's [width, height], for `iou50` with boxes in pixels
    - `choice_logprob`: `context` or `question`, `choices`, `answer_index`, and `compare` (`sum`, `mean` or
      `characters`; the mean a token if missing, the sum for the task `winogrande`)
    - `last_word`: `context`, `continuation`
    - `perplexity`: `text`

    Images, under `image` or `images`, are relative to the folder and stay inside it, or lie under one of the folders
    `images`. A field that is null is absent.
    Other keys are ignored, but never a video, a sound, or the only picture.

    Raises:
        DataError: no such folder or file, a line that is not such an object, an id twice, a missing image, no items.
    """
    file = path / FILE_NAME
    name = pack_name(path)
    pictures = ImageFolder(path, images)
    rows = list(_rows(file))
    _require_fields(rows)
    items = [_item(row, name, pictures) for row in rows]
    if not items:
        raise DataError(f"{file} has no items", "at least one JSON object, one a line", "check how the pack was made")
    _refuse_repeats(items, file)
    return Pack(name, path, tuple(items if limit is None else spread(items, limit)))


def pack_name(folder: Path) -> str:
    """Return the name of the pack in a folder: that of the folder, whatever path leads there."""
    return folder.name if folder.name not in ("", "..") else folder.resolve().name


def spread(items: Sequence[Item], limit: int) -> list[Item]:
    """Return at most `limit` of `items`, in their order: tasks as even as their sizes allow, evenly spaced in each."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault((item.task, item.metric), []).append(index)
    chosen: list[int] = []
    left = limit
    for place, group in enumerate(sorted(groups.values(), key=len)):
        quota = min(len(group), left // (len(groups) - place))
        chosen += [group[step * len(group) // quota] for step in range(quota)]
        left -= quota
    return [items[index] for index in sorted(chosen)]


def _rows(file: Path) -> Iterator[Row]:
    """Yield the object of every line of `file` that is not blank."""
    for number, value in json_lines(file, PACK_FILE):
        place = f"{file}:{number}"
        yield Row(as_object(value, place, PACK_FILE), place, PACK_ROW)


def _item(row: Row, pack: str, pictures: ImageFolder) -> Item:
    metric = row.text("metric")
    if metric not in METRICS:
        known = METRICS.names()
        hint = did_you_mean(metric, known)
        raise row.refuse(f"unknown metric {shown(metric)}", ", ".join(known), f"{hint}fix that line")
    mode = METRICS.get(metric).mode
    item = Item(
        id=row.text("id"),
        pack=pack,
        task=row.text("task") if "task" in row else pack,
        metric=metric,
        **_pictures(row, pictures),
        **_fields(row, metric, mode),
    )
    problem = _misplaced_image(item) or METRICS.get(metric).check(item)
    if problem:
        raise row.at(f"{row.place} ({item.id})").refuse(problem, f"a row for metric {metric!r}")
    return item


def _require_fields(rows: Sequence[Row]) -> None:
    """Raise if rows lack fields that their metrics need: all of them are named in one error, with their lines."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        missing = tuple(key for key in _needed(row) if key not in row)
        if missing:
            groups.setdefault(missing, []).append(row)
    if not groups:
        return
    given = "\n".join(_lacking(missing, group) for missing, group in groups.items())
    row, names = next(iter(groups.values()))[0], listed(next(iter(groups)))
    have = ", ".join(shown(key, 30) for key in list(row.fields)[:12] if key in row)
    lines = sum(map(len, groups.values()))
    raise PACK_ROW.error(
        given, f"a row with {names}; it has {have}", "fix that line" if lines == 1 else f"fix these {lines} lines"
    )


def _lacking(missing: tuple[str, ...], rows: Sequence[Row]) -> str:
    """Return in words which fields the rows lack, and in which lines."""
    numbers = [row.place.rpartition(":")[2] for row in rows[1:]]
    more = f", and in {len(numbers)} more lines ({', '.join(numbers[:5])}{', ...' if len(numbers) > 5 else ''})"
    verb = "is" if len(missing) == 1 else "are"
    return f"{rows[0].place}: {listed(missing)} {verb} missing{more if numbers else ''}"


def _needed(row: Row) -> tuple[str, ...]:
    """Return the fields that a row must have; of one without a metric, those that most metrics need."""
    metric = row.fields.get("metric")
    if metric is None:
        texts = ("text", "context", "continuation", "choices", "answer_index")
        return ("id", "metric", *(() if any(key in row for key in texts) else ("question", "answers")))
    if not isinstance(metric, str) or metric not in METRICS:
        return ()
    return ("id", *_required(row, metric, METRICS.get(metric).mode))


def _required(row: Row, metric: str, mode: AskingMode) -> tuple[str, ...]:
    """Return the fields that a row of `metric` must have, besides those of every row."""
    if mode == "choose":
        return ("context" if "context" in row else "question", "choices", "answer_index")
    if mode != "generate":
        return ("context", "continuation") if mode == "next_word" else ("text",)
    truth = {"choice": ("choices", "answers"), "letter": ("choices", "answer_index")}.get(metric, ("answers",))
    return ("question", *truth)


def _fields(row: Row, metric: str, mode: AskingMode) -> dict[str, Any]:
    if mode == "generate":
        refuse_other_media(row, row.text("question"))
        return {"question": row.text("question"), **_truth(row, metric)}
    if mode == "next_word":
        return {"context": row.text("context"), "answers": (row.text("continuation"),)}
    if mode == "perplexity":
        return {"text": row.text("text")}
    key = "context" if "context" in row else "question"
    return {
        key: row.text(key),
        "choices": row.texts("choices"),
        "answer_index": row.whole("answer_index"),
        "compare": _compare(row),
    }


def _truth(row: Row, metric: str) -> dict[str, Any]:
    choices = row.texts("choices") if metric in ("choice", "letter") else ()
    if metric == "letter":
        return {"choices": choices, "answer_index": row.whole("answer_index")}
    size = _size(row) if metric == "iou50" and "size" in row else None
    return {"answers": row.texts("answers"), "choices": choices, "size": size}


def _pictures(row: Row, pictures: ImageFolder) -> dict[str, Any]:
    """Return the item's pictures: `image` or `images` may be one name or a list of names."""
    names = picture_names(row)
    if not names:
        refuse_other_names(row, TEXTS)
    paths = [pictures.find(name, row.place) for name in names]
    return {"image": paths[0], "more_images": tuple(paths[1:])} if paths else {}


def _size(row: Row) -> tuple[int, int]:
    value = row.fields["size"]
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(type(side) is int and 0 < side < LARGEST for side in value)
    ):
        raise row.refuse(f"'size' is {shown(value)}", "[width, height] in pixels")
    return value[0], value[1]


def _compare(row: Row) -> Compare:
    """Return whether sums or means of log-probabilities are compared: the row's word, else by its task."""
    default = "sum" if row.fields.get("task") in SUM_TASKS else "mean"
    value = row.text("compare") if "compare" in row else default
    if value not in ("sum", "mean", "characters"):
        raise row.refuse(f"'compare' is {shown(value)}", "'sum', 'mean' or 'characters'")
    return cast(Compare, value)


def _misplaced_image(item: Item) -> str:
    if item.image is not None and METRICS.get(item.metric).mode != "generate":
        return "this metric asks about text only, but the row has an image"
    count = item.question.count(PLACEHOLDER)
    pictures = len(item.images)
    if count > pictures:
        return f"'question' has {PLACEHOLDER} {count} times, but {pictures} is the most here"
    return f"'question' has {PLACEHOLDER} {count} times for {pictures} pictures" if 0 < count < pictures else ""


def _refuse_repeats(items: Sequence[Item], file: Path) -> None:
    """Raise if two items share an id: predictions are compared by it."""
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise DataError(f"{file}: id {item.id!r} is there twice", "each id once", "rename one of the two")
        seen.add(item.id)
