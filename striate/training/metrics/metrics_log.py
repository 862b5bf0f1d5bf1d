"""Log of training metrics, `train_log.jsonl`: loss, learning rates, gradient norm and seconds of every step."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from striate.errors import TrainingError
from striate.storage.atomic import cannot_write, write_text


class MetricsLog:
    """Writes `train_log.jsonl` and stops training when its numbers go wrong.

    Keys of a line: `step` (from 1), `loss` (nats a token), `lr`, `projector_lr` (those used in this step),
    `grad_norm` (before clipping), `seconds` (of this step), `tokens` (of its samples) and `slots` (the same with
    padding); with LISA also `open_layers`.
    """

    def __init__(self, path: Path, done: int = 0, writes: bool = True) -> None:
        """Open the log at `path`, keeping the lines of the first `done` steps; with `writes` off it is kept in memory.

        Raises:
            ArtifactError: the log can't be written.
        """
        self.path = path
        self.rows = [row for row in _read(path) if row["step"] <= done] if writes else []
        self._stream: TextIO | None = None
        if writes:
            write_text(path, "".join(json.dumps(row) + "\n" for row in self.rows))
            self._stream = path.open("a", encoding="utf-8", buffering=1)
        self._since = time.perf_counter()

    def start(self) -> None:
        """Start the clock of the first step."""
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
            TrainingError: loss or gradient norm is not finite.
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

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream:
            self._stream.close()


def _diverged(step: int, loss: float, grad_norm: float | None) -> TrainingError:
    """Return the error for a loss or gradient that is no longer a number."""
    return TrainingError(
        f"training diverged at step {step}: loss {loss}, gradient norm {grad_norm}",
        "a finite loss",
        "lower train.lr or raise train.warmup_ratio; the last good checkpoint is kept in the work folder",
    )


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of an earlier log; an interrupted last line is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
