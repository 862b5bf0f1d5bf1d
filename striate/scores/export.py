"""Layer scores as a file for other programs: CSV or JSON, a row per scorer, task, part and layer."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

from striate.artifacts import LayerScores, Scores
from striate.errors import ConfigError
from striate.storage.atomic import write_text
from striate.storage.csv_export import check_new_file, csv_text

ALL = "all"
"""The task of scores on all samples, and the part of scores on all kinds of tokens."""


@dataclass(frozen=True)
class ScoreRow:
    """One layer's score by one scorer, on one task's samples and one kind of token, with its 95% interval."""

    scorer: str
    task: str
    part: str
    layer: int
    value: float
    low: float | None
    high: float | None


COLUMNS = tuple(field.name for field in fields(ScoreRow))


def export_scores(scores: Scores, path: Path, *, overwrite: bool = False) -> None:
    """Write every score to `path`, whole or not at all: tidy CSV, or JSON with the same rows, by its suffix.

    Columns are scorer, task, part, layer, value, low and high; `all` stands for all samples and for all kinds of
    tokens. Numbers are read back exactly as they were; a part without an interval leaves low and high empty.

    Raises:
        ConfigError: another suffix, or the file exists and `overwrite` is not given.
        ArtifactError: it can't be written.
    """
    check_export(path, overwrite)
    write_text(path, WRITERS[path.suffix.lower()](scores))


def check_export(path: Path, overwrite: bool) -> None:
    """Check, before any work, that `path` is a file that scores can be written to; raises as `export_scores` does."""
    if path.suffix.lower() not in WRITERS:
        raise ConfigError(
            f"can't export scores to {path}: unknown suffix {path.suffix!r}",
            f"a file that ends in {' or '.join(WRITERS)}",
            f"use for example --export {path.with_suffix('.csv').name if path.name else 'scores.csv'}",
        )
    check_new_file(path, overwrite)


def tidy_rows(scores: Scores) -> list[ScoreRow]:
    """Return every score as a row: all samples first and then each task; all tokens first and then each part.

    `low` and `high` are None where a part has no interval of its own.
    """
    rows: list[ScoreRow] = []
    for task, entries in {ALL: scores.scorers, **scores.tasks}.items():
        for entry in entries:
            for part, (values, low, high) in _bands(entry).items():
                rows.extend(
                    ScoreRow(
                        entry.scorer,
                        task,
                        part,
                        layer,
                        value,
                        low[layer] if low else None,
                        high[layer] if high else None,
                    )
                    for layer, value in enumerate(values)
                )
    return rows


def _bands(entry: LayerScores) -> dict[str, tuple[Sequence[float], Sequence[float], Sequence[float]]]:
    parts = {
        part: (values, entry.part_low.get(part, ()), entry.part_high.get(part, ()))
        for part, values in entry.parts.items()
    }
    return {ALL: (entry.values, entry.low, entry.high), **parts}


def _csv(scores: Scores) -> str:
    return csv_text(COLUMNS, map(astuple, tidy_rows(scores)))


def _json(scores: Scores) -> str:
    rows = [asdict(row) for row in tidy_rows(scores)]
    document = {"version": 1, "num_layers": scores.num_layers, "samples": scores.samples, "rows": rows}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


WRITERS: dict[str, Callable[[Scores], str]] = {".csv": _csv, ".json": _json}
