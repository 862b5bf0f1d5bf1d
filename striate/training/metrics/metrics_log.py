"""Log of training metrics, `train_log.jsonl`: loss, learning rates, gradient norm and seconds of every step."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from striate.errors import ArtifactError, DivergedError
from striate.storage.atomic import cannot_write, write_text

AFTER_DIVERGING = (
    "the last good checkpoint is kept, where there is one: the same command goes on from it. If it diverges again,"
    " lower train.lr or raise train.warmup_ratio with --overwrite, which begins the training anew; where it is healing"
    " that diverged, lower heal.lr: it alone begins anew"
)
# As many steps as the speed beside the bar is a mean of.
RECENT = 10


class MetricsLog:
    """Writes `train_log.jsonl` and stops training when its numbers go wrong.

    Keys of a line: `step` (from 1), `loss` (nats a token), `lr`, `projector_lr` (those used in this step),
    `grad_norm` (before clipping), `seconds` (of this step), `tokens` (of its samples) and `slots` (the same with
    padding); with LISA also `open_layers`, `vision_lr` where that encoder trains, `skipped` where broken samples were
    left out: why, by their ids, and `validation` where held-out samples were measured after the step: losses in nats a
    token, exact matches from 0 to 1, and its own `seconds`.
    """

    def __init__(self, path: Path, rows: Sequence[dict[str, Any]] = (), writes: bool = True) -> None:
        """Open the log at `path` after the `rows` of the steps that are done; with `writes` off it is kept in memory.

        Raises:
            ArtifactError: the log can't be written.
        """
        self.path = path
        self.rows = list(rows) if writes else []
        self._stream: TextIO | None = None
        if writes:
            write_text(path, dump_rows(self.rows))
            self._stream = path.open("a", encoding="utf-8", buffering=1)
        self._since = time.perf_counter()

    def start(self) -> None:
        """Start the clock of the coming step."""
        self._since = time.perf_counter()

    def write(
        self,
        step: int,
        loss: float,
        grad_norm: float | None,
        lr: float,
        projector_lr: float,
        now: float | None = None,
        **more: Any,
    ) -> None:
        """Add the line of one step; `grad_norm` is None for a float16 step that the gradient scaler skipped.

        `now` is when it ended, by `time.perf_counter`; `more` are further keys of the line.

        Raises:
            DivergedError: loss or gradient norm is not finite.
            ArtifactError: the disk is full.
        """
        now = time.perf_counter() if now is None else now
        if not (math.isfinite(loss) and math.isfinite(grad_norm or 0.0)):
            raise _diverged(step, loss, grad_norm)
        row = {"step": step, "loss": loss, "lr": lr, "projector_lr": projector_lr, "grad_norm": grad_norm}
        row |= {"seconds": now - self._since, **more}
        self._since = now
        self.rows.append(row)
        try:
            if self._stream:
                self._stream.write(json.dumps(row) + "\n")
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def figures(self) -> str:
        """Return what is shown beside the bar: the last loss, and tokens a second over the last steps."""
        last = self.rows[-RECENT:]
        tokens, seconds = (sum(row.get(key, 0) for row in last) for key in ("tokens", "seconds"))
        # Short: with memory it fits beside the bar of a terminal of 80 columns.
        return f"loss {last[-1]['loss']:.3f}, {tokens / max(seconds, 1e-9):,.0f} tok/s"

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream:
            self._stream.close()


def reported(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a log's row, by the names that Hugging Face's loggers have for them."""
    names = {"lr": "learning_rate", "projector_lr": "projector_learning_rate"}
    held_out = {f"eval_{name}": value for name, value in row.get("validation", {}).items()}
    found = {names.get(name, name): value for name, value in {**row, **held_out}.items() if name != "step"}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def dump_rows(rows: Sequence[dict[str, Any]]) -> str:
    """Return the text of a log with these `rows`."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def read_rows(path: Path, done: int) -> list[dict[str, Any]]:
    """Return the rows of the first `done` steps from the log at `path`; what follows them is left out.

    Raises:
        ArtifactError: it can't be read, or does not have each of these steps once, in order.
    """
    try:
        return parse_rows(path.read_text(encoding="utf-8"), path, done)
    except (OSError, UnicodeDecodeError) as error:
        raise _lacks(path, 1, done) from error


def parse_rows(text: str, path: Path, done: int) -> list[dict[str, Any]]:
    """Return the rows of the first `done` steps from the `text` of the log at `path`.

    Raises:
        ArtifactError: it does not have each of these steps once, in order.
    """
    rows: list[dict[str, Any]] = []
    for step, line in enumerate(text.splitlines()[:done], start=1):
        try:
            row = json.loads(line)
            whole = row["step"] == step and all(math.isfinite(row[key]) for key in ("loss", "lr", "seconds"))
        except (ValueError, TypeError, KeyError, RecursionError):
            whole = False
        if not whole:
            raise _lacks(path, step, done)
        rows.append(row)
    if len(rows) < done:
        raise _lacks(path, len(rows) + 1, done)
    return rows


def _lacks(path: Path, step: int, done: int) -> ArtifactError:
    return ArtifactError(
        f"{path} lacks the line of step {step}, of {done} that are done",
        "one line a step, as training wrote it",
        "restore it, or use --overwrite to begin the training anew",
    )


def _diverged(step: int, loss: float, grad_norm: float | None) -> DivergedError:
    """Return the error for a loss or gradient that is no longer a number."""
    return DivergedError(
        f"training diverged at step {step}: loss {loss}, gradient norm {grad_norm}", "a finite loss", AFTER_DIVERGING
    )
