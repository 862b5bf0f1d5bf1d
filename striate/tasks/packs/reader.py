"""Read test packs, folders with a `test.jsonl`; errors name file and line. No torch."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from striate.data.parsing import ImageFolder
from striate.data.samples import PLACEHOLDER
from striate.errors import DataError, did_you_mean
from striate.storage.read_files import Form, as_object, json_lines
from striate.tasks.metrics import METRICS
from striate.tasks.packs.items import Compare, Item, Pack

FILE_NAME = "test.jsonl"
PACK_FILE = Form(DataError, f"a folder that holds {FILE_NAME}, one JSON object a line")
SUM_TASKS = frozenset({"winogrande"})


def read_pack(path: Path, limit: int | None = None) -> Pack:
    """Return the pack in folder `path`; with `limit`, a subset of at most that many, see `spread`.

    A line of `test.jsonl` is an object with `id`, `metric`, `task` (the pack's name if missing) and, by metric:

    - metrics of generated answers (`exact`, `vqa`, `relaxed`, ...): `question`, `answers`, `image` (none for a text
      question, a list for several pictures); `choices` for `choice`; `choices` and `answer_index` instead of `answers`
      for `letter`; `size`, the picture's [width, height], for `iou50` with boxes in pixels
    - `choice_logprob`: `context` or `question`, `choices`, `answer_index`, and `compare` (`sum`, `mean` or
      `characters`; the mean a token if missing, the sum for the task `winogrande`)
    - `last_word`: `context`, `continuation`
    - `perplexity`: `text`

    Images are relative to the folder and stay inside it. Other keys are ignored.

    Raises:
        DataError: no such folder or file, a line that is not such an object, an id twice, a missing image, no items.
    """
    file = path / FILE_NAME
    name = path.name if path.name not in ("", "..") else path.resolve().name
    pictures = ImageFolder(path)
    items = [_item(row, name, pictures, f"{file}:{line}") for line, row in _rows(file)]
    if not items:
        raise DataError(f"{file} has no items", "at least one JSON object, one a line", "check how the pack was made")
    _refuse_repeats(items, file)
    return Pack(name, path, tuple(items if limit is None else spread(items, limit)))


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


def _rows(file: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    """Yield the number (from 1) and object of every line of `file` that is not blank."""
    for number, value in json_lines(file, PACK_FILE):
        yield number, as_object(value, f"{file}:{number}", PACK_FILE)


def _item(row: dict[str, Any], pack: str, pictures: ImageFolder, place: str) -> Item:
    metric = _text(row, "metric", place)
    if metric not in METRICS:
        known = METRICS.names()
        raise DataError(
            f"{place}: unknown metric {metric!r}", ", ".join(known), f"{did_you_mean(metric, known)}fix that line"
        )
    item = Item(
        id=_text(row, "id", place),
        pack=pack,
        task=_text(row, "task", place) if "task" in row else pack,
        metric=metric,
        **_pictures(row, pictures, place),
        **_fields(row, metric, place),
    )
    problem = _misplaced_image(item) or METRICS.get(metric).check(item)
    if problem:
        raise DataError(f"{place} ({item.id}): {problem}", f"a row for metric {metric!r}", "fix that line")
    return item


def _fields(row: dict[str, Any], metric: str, place: str) -> dict[str, Any]:
    mode = METRICS.get(metric).mode
    if mode == "generate":
        return {"question": _text(row, "question", place), **_truth(row, metric, place)}
    if mode == "next_word":
        return {"context": _text(row, "context", place), "answers": (_text(row, "continuation", place),)}
    if mode == "perplexity":
        return {"text": _text(row, "text", place)}
    key = "context" if "context" in row else "question"
    return {
        key: _text(row, key, place),
        "choices": _texts(row, "choices", place),
        "answer_index": _index(row, place),
        "compare": _compare(row, place),
    }


def _truth(row: dict[str, Any], metric: str, place: str) -> dict[str, Any]:
    choices = _texts(row, "choices", place) if metric in ("choice", "letter") else ()
    if metric == "letter":
        return {"choices": choices, "answer_index": _index(row, place)}
    size = _size(row, place) if metric == "iou50" and "size" in row else None
    return {"answers": _texts(row, "answers", place), "choices": choices, "size": size}


def _pictures(row: dict[str, Any], pictures: ImageFolder, place: str) -> dict[str, Any]:
    """Return the item's pictures: `image` may be one name or a list of names."""
    names = row.get("image")
    if names is None:
        return {}
    paths = [pictures.find(name, place) for name in (_texts({"image": _listed(names)}, "image", place))]
    return {"image": paths[0], "more_images": tuple(paths[1:])}


def _listed(names: Any) -> Any:
    """Return one name as a list of it; lists stay as they are."""
    return names if isinstance(names, list) else [names]


def _size(row: dict[str, Any], place: str) -> tuple[int, int]:
    value = row["size"]
    if not isinstance(value, list) or len(value) != 2 or not all(type(side) is int and side > 0 for side in value):
        raise DataError(f"{place}: 'size' is {value!r}", "[width, height] in pixels", "fix that line")
    return value[0], value[1]


def _text(row: dict[str, Any], key: str, place: str) -> str:
    """Return the text under `key`, which must be there and not be blank; numbers are read as text."""
    value = row.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        problem = f"is {value!r}" if key in row else "is missing"
        raise DataError(f"{place}: {key!r} {problem}", f"{key!r} with some text", "fix that line")
    return value


def _texts(row: dict[str, Any], key: str, place: str) -> tuple[str, ...]:
    """Return the list of texts under `key`, which must not be empty."""
    values = row.get(key)
    if not isinstance(values, list) or not values:
        problem = f"is {values!r}" if key in row else "is missing"
        raise DataError(f"{place}: {key!r} {problem}", f"{key!r} with a list of texts", "fix that line")
    return tuple(_text({key: value}, key, place) for value in values)


def _index(row: dict[str, Any], place: str) -> int:
    value = row.get("answer_index")
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"{place}: 'answer_index' is {value!r}", "a whole number from 0", "fix that line")
    return value


def _compare(row: dict[str, Any], place: str) -> Compare:
    """Return whether sums or means of log-probabilities are compared: the row's word, else by its task."""
    value = row.get("compare", "sum" if row.get("task") in SUM_TASKS else "mean")
    if value not in ("sum", "mean", "characters"):
        raise DataError(f"{place}: 'compare' is {value!r}", "'sum', 'mean' or 'characters'", "fix that line")
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
