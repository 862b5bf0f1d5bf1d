"""List the items that models answer differently, side by side. No torch."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from striate.artifacts import EvalRecord, Prediction
from striate.errors import ArtifactError, ConfigError
from striate.storage.atomic import write_text
from striate.storage.csv_export import check_new_file, csv_text

Results = Mapping[str, tuple[EvalRecord, Sequence[Prediction]]]
FORMATS = (".csv", ".jsonl")


def differing(results: Results, baseline: str) -> list[dict[str, Prediction]]:
    """Return, for every item whose score or answer is not the same for all models, each model's prediction by label.

    Items come in the order of the baseline's predictions; perplexity items, whose answer is a number, are left out.

    Raises:
        ArtifactError: a model did not answer an item that the baseline answered.
    """
    by_label: dict[str, dict[tuple[str, ...], Prediction]] = {
        label: {_key(item): item for item in predictions} for label, (_, predictions) in results.items()
    }
    rows = []
    for item in results[baseline][1]:
        missing = [label for label, known in by_label.items() if _key(item) not in known]
        if missing:
            raise ArtifactError(
                f"{missing[0]!r} has no answer to {item.id!r} of {item.pack}",
                "evaluations with the same packs and the same limit",
                "run `striate evaluate` again for all models",
            )
        row = {label: known[_key(item)] for label, known in by_label.items()}
        answers = {(prediction.score, prediction.answer) for prediction in row.values()}
        if item.metric != "perplexity" and len(answers) > 1:
            rows.append(row)
    return rows


def export(rows: Sequence[Mapping[str, Prediction]], path: Path, *, overwrite: bool = False) -> None:
    """Write the rows of `differing` to `path`: a line an item, each model's answer and score in columns of its own.

    Raises:
        ConfigError: the file is neither .csv nor .jsonl, or exists and `overwrite` is not given.
        ArtifactError: it can't be written.
    """
    check_export(path, overwrite)
    flat = [_flat(row) for row in rows]
    if path.suffix == ".jsonl":
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in flat))
        return
    header = list(flat[0]) if flat else ["pack", "task", "id"]
    cells = ((row | {"expected": " | ".join(row["expected"])}).values() for row in flat)
    write_text(path, csv_text(header, map(tuple, cells)))


def check_export(path: Path, overwrite: bool) -> None:
    """Check, before any work, that answers can be written to `path`.

    Raises:
        ConfigError: it ends like no format that is written, or exists and `overwrite` is not given.
    """
    check_new_file(path, overwrite)
    if path.suffix not in FORMATS:
        raise ConfigError(f"{path} is no table that is written", " or ".join(FORMATS), "for example answers.csv")


def change(before: Prediction, after: Prediction) -> str:
    """Return in words how an answer changed: `right to wrong`, `wrong to right`, `better`, `worse` or `other words`."""
    if before.score == after.score:
        return "other words" if before.answer != after.answer else ""
    if {before.score, after.score} == {0.0, 1.0}:
        return "right to wrong" if before.score > after.score else "wrong to right"
    return "worse" if before.score > after.score else "better"


def _key(item: Prediction) -> tuple[str, ...]:
    return (item.pack, item.task, item.metric, item.id)


def _flat(row: Mapping[str, Prediction]) -> dict[str, Any]:
    first = next(iter(row.values()))
    fields: dict[str, Any] = {name: getattr(first, name) for name in ("pack", "task", "id", "metric", "question")}
    fields |= {"image": first.image or "", "expected": list(first.expected)}
    for label, item in row.items():
        fields |= {f"{label} answer": item.answer, f"{label} score": item.score}
    return fields
